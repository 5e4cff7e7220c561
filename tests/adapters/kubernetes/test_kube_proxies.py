"""Proxies in the environment: never between the operator and the API server of its own cluster; outside as with kubectl."""

from pathlib import Path

import pytest
import urllib3
import yaml
from kubernetes import config

from splitinference.adapters.kubernetes.api import connect

PROXY = "http://proxy.example:3128"
VARIABLES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def a_kubeconfig(folder: Path, server: str) -> str:
    content = {
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "current-context": "x",
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def proxy_of(kubeconfig: str | None = None) -> str | None:
    """That requests go by, as the client's pool has it."""
    pool = connect(kubeconfig).rest_client.pool_manager
    return str(pool.proxy) if isinstance(pool, urllib3.ProxyManager) else None


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"])
def test_inside_a_cluster_the_api_server_is_asked_directly(monkeypatch: pytest.MonkeyPatch, name: str):
    """It is a Service there, which no proxy outside reaches; NO_PROXY or not."""

    def load(configuration: object) -> None:
        configuration.host = "https://10.96.0.1:443"  # type: ignore[attr-defined]

    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv(name, PROXY)
    monkeypatch.setattr(config, "load_incluster_config", load)
    assert proxy_of() is None


@pytest.mark.parametrize(
    ("server", "past", "proxied"),
    [
        ("https://api.example:6443", "", True),
        ("https://api.example:6443", ".example", False),
        ("https://10.1.2.3:6443", "10.0.0.0/8", False),
        ("https://192.0.2.3:6443", "10.0.0.0/8", True),
    ],
)
def test_outside_the_environment_counts_and_so_does_what_it_excludes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: str, past: str, proxied: bool
):
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("HTTP_PROXY", "http://another.example:1")
    monkeypatch.setenv("NO_PROXY", past)
    assert proxy_of(a_kubeconfig(tmp_path, server)) == (PROXY if proxied else None)
