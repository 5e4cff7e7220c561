"""Measurements that run inside the segment image, on real weights: what boundaries reveal, and what spot checks find."""
