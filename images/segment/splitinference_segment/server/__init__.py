"""Triton around a segment: start, the backend's model, metrics, probes, the end."""
