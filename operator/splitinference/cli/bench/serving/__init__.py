"""Measurements of models in containers."""
