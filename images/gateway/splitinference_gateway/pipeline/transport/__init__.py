"""Connections from the gateway to segments."""
