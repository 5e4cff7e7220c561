"""What a plan may not break."""
