"""Tokens along a chain of segments: steps, the wire, replay, hand-over, prefixes, spot checks."""
