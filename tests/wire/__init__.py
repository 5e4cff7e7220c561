"""The wire between gateway and segments, without models: runs on any machine."""
