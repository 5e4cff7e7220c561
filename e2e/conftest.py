"""One cluster for all end-to-end tests of a session: started, used, and removed, also when tests fail."""

from collections.abc import Iterator

import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.scene import NAME
from e2e.session import KEEP, session_cluster

_LONG_SECONDS = 3600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with clusters and engines may take longer than pyproject.toml says of the others."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("cluster", "engine", "long")) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_LONG_SECONDS))


@pytest.fixture(scope="session")
def engine() -> Iterator[Cluster]:
    """No nodes: what builds and runs images, and the model's files."""
    with session_cluster() as made:
        stack.put_model(made)
        yield made


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four unequal workers with Prometheus and the model's files; no operator yet."""
    with session_cluster() as made:
        made.up()
        with made.progress.step("put the model in place"):
            stack.put_model(made)
        yield made


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
    with operated.progress.step("nodes come to rest"):
        stack.comes_to_rest(operated)
    operated.kubectl("apply", "-f", str(stack.SAMPLE))
    with operated.progress.step("wait for the sample to be Ready"):
        stack.wait_ready(operated, NAME)
    yield operated
    if not KEEP:
        operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
