"""The transition from the observed state to a plan, step by step."""
