"""Objects of the pretend cluster as the API server would send them, and small facts about them."""

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.ports import Listing, Manifest
from splitinference_protocol.report import ObservedTraffic, Percentiles

MIB = 1024 * 1024
NAMESPACE = "team"


def a_node(name: str, mib: int = 1200, cores: float = 2.0, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {k.replace("__", "/"): v for k, v in labels.items()}, "annotations": {}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": str(cores), "memory": f"{mib}Mi"},
            "conditions": [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": "False"}],
        },
    }


def a_body(name: str = "chat", created: datetime | None = None, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "uid": f"uid-{name}",
            "generation": 1,
            "creationTimestamp": stamp(created or datetime(2026, 1, 1, tzinfo=UTC) - timedelta(hours=1)),
        },
        "spec": {
            "model": {"id": "m", "source": {"hostPath": {"path": "/m"}}, "dtype": "float32"},
            "adaptation": {"window": "20s", "cooldown": "60s", "drain": "10s"},
            **spec,
        },
    }


_GENERATIONS = itertools.count(1)


def listed(*things: Manifest) -> Listing:
    """Objects as a store lists them, each time of another generation."""
    return Listing(things, (next(_GENERATIONS),))


def parsed(body: Mapping[str, Any]) -> Resource:
    """The resource as builders take it."""
    found = read_resource(body)
    assert isinstance(found, Resource), found
    return found


def is_ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def ready_node(node: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node["status"]["conditions"])


def merged(before: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch, applied."""
    after = dict(before)
    for key, value in patch.items():
        if value is None:
            after.pop(key, None)
        elif isinstance(value, Mapping):
            after[key] = merged(after[key] if isinstance(after.get(key), dict) else {}, value)
        else:
            after[key] = value
    return after


def seen_traffic(requests: int = 10, per_token: float = 12.0) -> ObservedTraffic:
    figures = Percentiles(p50=per_token, p95=per_token)
    return ObservedTraffic(requests=requests, time_to_first_token_ms=Percentiles(p50=90, p95=120), time_per_output_token_ms=figures)
