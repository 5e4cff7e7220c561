"""The custom resource: its specification as parsed, its conditions as written."""
