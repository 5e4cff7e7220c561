"""Columns with prices and bounds, and the CP-SAT master that chooses among them."""
