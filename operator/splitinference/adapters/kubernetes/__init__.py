"""The Kubernetes API: client, store and watches."""
