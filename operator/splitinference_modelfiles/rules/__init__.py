"""Which settings of config.json are served, and which tensors they mean."""
