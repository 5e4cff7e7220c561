"""One cluster for all end-to-end tests of a session: started, used, and removed, also when tests fail.

`E2E_KEEP=1` leaves the cluster running, for the next run to find; `E2E_NAME` is another name for it.
"""

import os
from collections.abc import Iterator

import pytest

from e2e import stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown
from e2e.scene import NAME

KEEP = os.environ.get("E2E_KEEP") == "1"
CLUSTER = os.environ.get("E2E_NAME", "splitinference-test")


@pytest.fixture(scope="session")
def engine() -> Iterator[Cluster]:
    """No nodes: what builds and runs images, and the model's files."""
    with shown() as progress:
        made = Cluster(Settings(name=CLUSTER), progress)
        try:
            stack.put_model(made)
            yield made
        finally:
            if not KEEP:
                made.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four unequal workers with Prometheus and the model's files; no operator yet."""
    with shown() as progress:
        made = Cluster(Settings(name=CLUSTER), progress)
        try:
            made.up()
            with progress.step("put the model in place"):
                stack.put_model(made)
            yield made
        finally:
            if not KEEP:
                made.down()


@pytest.fixture(scope="session")
def operated(cluster: Cluster) -> Cluster:
    """The same with the operator installed by Helm."""
    images = cluster.load_images()
    with cluster.progress.step("install the operator"):
        stack.install_operator(cluster, images)
    return cluster


@pytest.fixture(scope="session")
def serving(operated: Cluster) -> Iterator[Cluster]:
    """The same with the sample resource, applied and Ready; deleted afterwards, unless the cluster is kept."""
    operated.kubectl("apply", "-f", str(stack.SAMPLE))
    with operated.progress.step("wait for the sample to be Ready"):
        stack.wait_ready(operated, NAME)
    yield operated
    if not KEEP:
        operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=120s")
