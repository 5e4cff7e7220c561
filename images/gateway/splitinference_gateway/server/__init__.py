"""Connections of clients: where the gateway listens, and what one connection may cost."""
