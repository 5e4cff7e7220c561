"""Kubernetes vocabulary without a network: what to read, what to write, in which order."""
