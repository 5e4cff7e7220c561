"""The search over labels."""
