"""The way from what is observed to a plan, step by step."""
