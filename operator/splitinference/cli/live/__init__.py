"""Commands about a SplitInference in a cluster."""
