"""Throughput: flow through runs of layers and links."""
