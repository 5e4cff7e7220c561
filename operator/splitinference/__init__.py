"""Serve one large model as segments over unequal, changing Kubernetes nodes."""

__version__ = "0.1.0"
