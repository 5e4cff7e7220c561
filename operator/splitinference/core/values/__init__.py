"""Immutable values that the rest of the core works on: cluster, profile, problem, plan."""
