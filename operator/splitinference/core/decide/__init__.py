"""When to plan again, and whether to adopt what the planner found."""
