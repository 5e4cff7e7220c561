"""MLPerf's LoadGen against a gateway."""
