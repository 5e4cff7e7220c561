"""Frames and META, by the standard library alone."""
