"""Good chains before anything is searched."""
