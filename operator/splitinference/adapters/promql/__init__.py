"""Prometheus: how it is asked, and what."""
