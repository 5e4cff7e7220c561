"""The test cluster: kind on the Docker engine that is there, or on one of our own, with public images or ones built here."""

from e2e.cluster.cluster import Cluster, NotUpError
from e2e.cluster.settings import Settings, WorkerSize

__all__ = ["Cluster", "NotUpError", "Settings", "WorkerSize"]
