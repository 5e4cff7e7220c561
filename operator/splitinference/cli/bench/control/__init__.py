"""Measurements of the operator against a real API server."""
