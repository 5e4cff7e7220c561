"""The gateway of one SplitInference: one model towards clients (OpenAI's API), a chain of segments behind it.

It runs in a pod of its own and never imports the operator; what both agree on is in docs/reference/data-plane.md.
"""

__version__ = "0.1.0"
