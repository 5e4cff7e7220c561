"""The gateway asks a real API server whose a token is, with the rights that the chart gives its ServiceAccount."""

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from splitinference_gateway.access.token_review import TokenReviews
from splitinference_gateway.errors import ApiError
from splitinference_gateway.routing.configmap_watch import ApiServer
from tests.chart.helm import helm
from tests.integration.conftest import ROOT

pytestmark = pytest.mark.anyio
AUDIENCE = "splitinference"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def token(api: client.ApiClient, namespace: str, account: str, *audiences: str) -> str:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": list(audiences)}}
    made = client.CoreV1Api(api).create_namespaced_service_account_token(account, namespace, body)
    return str(made.status.token)


@pytest.fixture
def accounts(api: client.ApiClient, namespace: str) -> str:
    """A namespace with a gateway's account and a client's."""
    for name in ("chat-gateway", "app"):
        client.CoreV1Api(api).create_namespaced_service_account(namespace, {"metadata": {"name": name}})
    return namespace


@pytest.fixture
def server(api: client.ApiClient, accounts: str, tmp_path: Path) -> ApiServer:
    """The API server as the gateway's pod finds it."""
    (tmp_path / "token").write_text(token(api, accounts, "chat-gateway"))
    configuration = api.configuration
    return ApiServer(configuration.host, tmp_path / "token", Path(configuration.ssl_ca_cert))


@pytest.fixture
def granted(api: client.ApiClient, accounts: str) -> Iterator[None]:
    """What the chart makes for this gateway."""
    release = f"t{uuid.uuid4().hex[:8]}"
    sets = [f"tokenReview.gateways[0].namespace={accounts}", "tokenReview.gateways[0].name=chat"]
    command = [helm(), "template", release, str(ROOT / "charts" / "splitinference"), "--show-only", "templates/token-review.yaml"]
    done = subprocess.run([*command, *(word for text in sets for word in ("--set", text))], capture_output=True, text=True, check=True)
    role, binding = yaml.safe_load_all(done.stdout)
    rbac = client.RbacAuthorizationV1Api(api)
    rbac.create_cluster_role(role)
    rbac.create_cluster_role_binding(binding)
    yield
    rbac.delete_cluster_role_binding(binding["metadata"]["name"])
    rbac.delete_cluster_role(role["metadata"]["name"])


async def refused(reviews: TokenReviews, given: str) -> int:
    with pytest.raises(ApiError) as caught:
        await reviews.identify(f"Bearer {given}", "")
    return caught.value.status


@pytest.mark.usefixtures("granted")
async def test_a_token_for_the_gateway_names_its_user(api: client.ApiClient, accounts: str, server: ApiServer) -> None:
    reviews = TokenReviews(server, AUDIENCE)
    try:
        user = await reviews.identify(f"Bearer {token(api, accounts, 'app', AUDIENCE)}", "10.0.0.1")
        assert user == f"system:serviceaccount:{accounts}:app"
        assert await refused(reviews, token(api, accounts, "app")) == 401  # one that pods carry for the API server
        assert await refused(reviews, token(api, accounts, "app", "vault")) == 401
        assert await refused(reviews, "nonsense") == 401
    finally:
        await reviews.close()


async def test_without_the_right_to_ask_nobody_is_let_in_and_nobody_is_called_wrong(
    api: client.ApiClient, accounts: str, server: ApiServer
) -> None:
    reviews = TokenReviews(server, AUDIENCE)
    try:
        assert await refused(reviews, token(api, accounts, "app", AUDIENCE)) == 503
    finally:
        await reviews.close()
