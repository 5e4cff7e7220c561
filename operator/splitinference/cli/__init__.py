"""The commands `splitinference` and `kubectl split`."""
