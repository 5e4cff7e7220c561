"""Measurements of the planner and the cost model."""
