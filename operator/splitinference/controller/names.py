"""Names of the components that a resource's pods belong to, where more than one folder needs them."""

PREFETCH = "prefetch"
"""A pod that brings weights to a node before a segment is moved there."""
