"""Prometheus in the test cluster: namespace `monitoring`, Service `prometheus`, port 9090."""

from collections.abc import Callable
from pathlib import Path

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


def scale(kubectl: Callable[..., str], replicas: int) -> None:
    """So many replicas from now on: 0 is Prometheus gone."""
    kubectl("-n", NAMESPACE, "scale", "deployment/prometheus", f"--replicas={replicas}")
    if replicas:
        wait(kubectl)
    else:
        kubectl("-n", NAMESPACE, "wait", "--for=delete", "pod", "-l", "app.kubernetes.io/name=prometheus", "--timeout=300s")
