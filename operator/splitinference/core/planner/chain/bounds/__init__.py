"""Bounds that a chain cannot beat, and prices."""
