"""Benchmarks that the segment image makes of itself: what a boundary tells, and how far honest outputs differ."""
