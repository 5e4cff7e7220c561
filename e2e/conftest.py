"""One cluster for all end-to-end tests of a session: started, used, and removed, also when tests fail.

`E2E_KEEP=1` leaves the cluster running, for the next run to find.
"""

import os
from collections.abc import Iterator

import pytest

from e2e import stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four unequal workers with Prometheus and the model's files; no operator yet."""
    with shown() as progress:
        made = Cluster(Settings(name="splitinference-test"), progress)
        try:
            made.up()
            with progress.step("put the model in place"):
                stack.put_model(made)
            yield made
        finally:
            if os.environ.get("E2E_KEEP") != "1":
                made.down()


@pytest.fixture(scope="session")
def operated(cluster: Cluster) -> Cluster:
    """The same with the operator installed by Helm."""
    images = cluster.load_images()
    with cluster.progress.step("install the operator"):
        stack.install_operator(cluster, images)
    return cluster
