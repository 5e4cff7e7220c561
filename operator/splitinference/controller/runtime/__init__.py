"""What starts passes, and how many run at once."""
