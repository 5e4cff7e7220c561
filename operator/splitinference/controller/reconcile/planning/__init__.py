"""From what was read to what is decided, and why: nothing is written here."""
