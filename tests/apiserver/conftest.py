"""One API server for all tests here, with our CRD; skipped where its programs are not built (`make prepare` builds them)."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from splitinference.cli.bench.control.control_plane import NotStartedError, until
from tests.apiserver.api_server import ApiServer, api_server, programs

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    try:
        programs()
    except NotStartedError as error:
        pytest.skip(f"{error}; make prepare builds what is missing")
    with api_server(tmp_path_factory.mktemp("apiserver")) as found:
        install_crd(found.api())
        yield found


def install_crd(api: client.ApiClient) -> None:
    extensions = client.ApiextensionsV1Api(api)
    crd = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    extensions.create_custom_resource_definition(crd)

    def established() -> bool:
        conditions = extensions.read_custom_resource_definition(crd["metadata"]["name"]).status.conditions or []
        return any(c.type == "Established" and c.status == "True" for c in conditions)

    until(established, 60, "the CRD is established")


@pytest.fixture
def api(server: ApiServer) -> client.ApiClient:
    return server.api()


@pytest.fixture
def namespace(api: client.ApiClient) -> str:
    """A namespace of the test's own; it goes with the server."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    client.CoreV1Api(api).create_namespace({"metadata": {"name": name}})
    return name
