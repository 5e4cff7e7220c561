"""Which plans can be reached from what serves, and what stood in the way."""
