"""Encrypted weights: the key of the model, and reading tensors that are decrypted in memory."""
