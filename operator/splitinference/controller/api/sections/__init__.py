"""The sections of a spec, each read into a frozen value."""
