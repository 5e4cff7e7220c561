"""The link probe: a small pod on each node that measures round trip and bandwidth to the others, within a stated budget.

It runs beside the operator, not in it, so it imports nothing else of ours and stays small.
"""
