"""What the page shows, without any connection."""
