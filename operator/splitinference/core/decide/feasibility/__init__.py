"""Which plans can be reached from the serving segments, and what blocked earlier transitions."""
