"""End-to-end tests on real clusters, and the harness that makes such a cluster."""
