"""Gateways and segments, and the certificates between them and the operator."""
