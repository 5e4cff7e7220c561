"""From measured times to the figures of processors and nodes, and how wrong the model is on them."""
