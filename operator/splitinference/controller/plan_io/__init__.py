"""Plans as they stand in a status, and as they are read back."""
