"""What a model's files say about its layers, without loading a weight."""
