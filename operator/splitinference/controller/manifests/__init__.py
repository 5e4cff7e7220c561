"""Kubernetes objects, built purely from a resource and a plan."""
