"""Typed tensors as KServe v2 clients send and read them."""
