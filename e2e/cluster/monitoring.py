"""Prometheus in the test cluster: namespace `monitoring`, Service `prometheus`, port 9090."""

import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

MANIFEST = Path(__file__).parent / "manifests" / "prometheus.yaml"
NAMESPACE = "monitoring"
URL = "http://prometheus.monitoring:9090"


def manifest(image: str) -> str:
    """What to apply, with `image` in it."""
    return MANIFEST.read_text().replace("@IMAGE@", image)


def deploy(kubectl: Callable[..., str], image: str) -> None:
    kubectl("apply", "-f", "-", stdin=manifest(image))


def wait(kubectl: Callable[..., str]) -> None:
    """Until it is ready to be asked."""
    kubectl("-n", NAMESPACE, "rollout", "status", "deployment/prometheus", "--timeout=600s")


def used_cores(kubectl: Callable[..., str]) -> dict[str, float]:
    """Cores that each node has used in the last half minute, kubelet and all pods together; nodes without samples are left out."""
    query = quote('deriv(container_cpu_usage_seconds_total{id="/"}[30s])')
    path = f"/api/v1/namespaces/{NAMESPACE}/services/prometheus:9090/proxy/api/v1/query?query={query}"
    found = json.loads(kubectl("get", "--raw", path))["data"]["result"]
    return {each["metric"]["node"]: float(each["value"][1]) for each in found}


def scale(kubectl: Callable[..., str], replicas: int) -> None:
    """So many replicas from now on: 0 is Prometheus gone."""
    kubectl("-n", NAMESPACE, "scale", "deployment/prometheus", f"--replicas={replicas}")
    if replicas:
        wait(kubectl)
    else:
        kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=prometheus", "--timeout=300s")
