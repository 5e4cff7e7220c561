"""The KV cache, and how it moves between segments."""
