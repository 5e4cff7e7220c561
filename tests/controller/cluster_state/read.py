"""Nodes, pods and metrics as tests give them, and the snapshot that is read of them."""

from datetime import UTC, datetime
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.snapshot import Reading, Sources, read_snapshot
from splitinference.controller.ports import Sample, Samples
from splitinference.settings import Settings
from tests.controller.world import a_node

MIB = 1024 * 1024


NOW = datetime(2026, 1, 1, tzinfo=UTC)


SETTINGS = Settings(core_gflops=50.0, link_mbps=1000.0, link_rtt_ms=0.5, metrics_max_age_seconds=60)


OWNER = ("team", "chat")


def a_pod(name: str, node: str, memory: str = "100Mi", instance: str = "", namespace: str = "team", **status: Any) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/managed-by": "splitinference",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": "segment",
    }
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": labels if instance else {}},
        "spec": {"nodeName": node, "containers": [{"name": "segment", "resources": {"requests": {"memory": memory}}}]},
        "status": {"phase": "Running", **status},
    }


def read(nodes: list[Any], pods: list[Any] = [], measured: Measured = Measured(), held: dict[str, int] | None = None) -> Reading:  # noqa: B006, B008
    return read_snapshot(Sources(now=NOW, nodes=nodes, pods=pods, measured=measured, held=held or {}, owner=OWNER), SETTINGS)


def cpu(used: float | None, age: float = 5.0, **own: float) -> Measured:
    segments = {f"team/{name}": Sample(value=value, age_seconds=5) for name, value in own.items()}
    return Measured(node_cpu_cores=Samples(by_name={"a": Sample(value=used, age_seconds=age)}), segment_cpu_cores=Samples(by_name=segments))


def utilization(measured: Measured, *pods: Any) -> tuple[float | None, tuple[str, ...]]:
    reading = read([a_node("a", cores=2)], list(pods), measured)
    return reading.snapshot.nodes[0].utilization, reading.notes
