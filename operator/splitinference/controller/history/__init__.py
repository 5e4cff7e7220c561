"""What is remembered between passes, kept in the status."""
