"""What was learned of nodes, through a real API server: its schema must not prune any of it, nor a merge patch mix routes."""

from datetime import UTC, datetime, timedelta

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.api.conditions import merge_patch
from splitinference.controller.history.calibration import Calibration, StageError, Window, read_calibration
from splitinference.core.cost.fitting.learn import Factor
from tests.integration.test_schema import a_resource

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def learned(segment: str, node: str, error: float) -> Calibration:
    return Calibration(
        model="0123456789abcdef/float32",
        nodes={"node-a": Factor(factor=2.5, windows=7, time=NOW)},
        window=Window(since=NOW + timedelta(minutes=1), revision="9c0ffee123", utilization={node: 0.25}),
        time=NOW,
        stages={segment: StageError(node=node, observed_ms=25.0, predicted_ms=24.0, uncalibrated_ms=10.0)},
        error_percent=error,
        uncalibrated_error_percent=60.0,
    )


def test_what_was_learned_is_read_as_it_was_written(cluster: KubeCluster, namespace: str) -> None:
    cluster.create(a_resource(namespace))
    before: dict[str, object] = {}
    for known in (learned("chat-0-12-ab", "node-a", 4.0), learned("chat-0-9-cd", "node-b", 8.5)):
        after = {"calibration": known.as_status()}
        cluster.patch_status(namespace, "chat", merge_patch(before, after))
        written = cluster.split_inference(namespace, "chat")
        assert written is not None
        assert read_calibration(written["status"]) == known
        before = after
