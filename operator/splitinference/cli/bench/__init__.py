"""`splitinference bench`: measure planner, operator and data plane."""
