"""Goals of the largest kind: the slowest stage, the fullest node, the most moves."""
