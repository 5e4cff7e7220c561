"""The autoscaler on kind: 0 → 1 → 3 → 0 pipelines under load, no request fails; and the time to the first token from zero."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress

import openai
import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.scene import NAME, OURS, frozen_sample, workers_of
from e2e.traffic import STEADY, Traffic

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NODE_MIB = 2300
"""Of each of the four workers: one holds the model."""
HOLD_SECONDS = 600
MODEL_FILES = "/var/lib/splitinference/models"


@pytest.fixture(scope="module")
def scaling(operated: Cluster) -> Iterator[Cluster]:
    """Up to three pipelines of one segment. The target is low, so that a few clients are load enough for three."""
    body = frozen_sample()
    limits = {"min": 0, "max": 3, "targetPercent": 10, "idleAfter": "45s", "downAfter": "45s", "hold": f"{HOLD_SECONDS}s"}
    body["spec"] |= {"partition": {"minSegments": 1, "maxSegments": 1}, "scaling": limits}
    body["spec"].pop("replicas", None)
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    with workers_of(operated, NODE_MIB):
        operated.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        stack.wait_ready(operated, NAME)
        yield operated


def reaches(cluster: Cluster, pipelines: int, seconds: float = 400) -> None:
    """Until so many pipelines serve."""

    def there() -> bool:
        status = stack.resource(cluster, NAME)["status"]
        return bool(status.get("replicas") == pipelines == status["scaling"]["pipelines"])

    stack.until(there, seconds, f"{pipelines} pipelines serve", progress=lambda: stack.pods_of(cluster, "default"))


def unloaded(cluster: Cluster) -> None:
    """Until there is no segment left, and the resource is ready all the same."""
    reaches(cluster, 0)
    pods = ("get", "pods", "-l", f"{OURS},app.kubernetes.io/component=segment", "-o", "name")
    stack.until(lambda: not cluster.kubectl(*pods).strip(), 120, "no segment is left")
    ready = stack.condition(stack.resource(cluster, NAME), "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Unloaded")


def first_token_seconds(base_url: str) -> float:
    """Seconds until a client of a model that is unloaded has its first token."""
    client = openai.OpenAI(base_url=base_url, api_key="none", timeout=HOLD_SECONDS, max_retries=0)
    began = time.monotonic()
    with client.chat.completions.create(
        model=stack.MODEL, messages=[{"role": "user", "content": "Why is the sky blue?"}], max_tokens=8, stream=True
    ) as chunks:
        next(chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content)
        return time.monotonic() - began


def forget_files(cluster: Cluster) -> None:
    """Take the model's files out of the page cache, and nothing else's."""
    script = f"find {MODEL_FILES} -type f -exec dd if={{}} iflag=nocache count=0 status=none \\;"
    for worker in cluster.settings.worker_names():
        with suppress(FileNotFoundError):
            cluster.engine().execute(worker, script, check=False)


def test_from_zero_to_three_and_back_under_load(scaling: Cluster) -> None:
    unloaded(scaling)
    with stack.endpoint(scaling, NAME) as base_url:
        with Traffic(base_url, stack.MODEL, STEADY) as traffic:
            reaches(scaling, 3)
            done = len(traffic.report().requests)
            stack.until(lambda: len(traffic.report().requests) >= done + 4, 240, "four more answers")
        report = traffic.report()
        assert [request.error for request in report.failed] == []
        unloaded(scaling)
        scaling.progress.say(f"0 → 3 → 0: 0 of {len(report.requests)} requests failed, longest wait {report.longest_wait:.1f} s")
        times = {}
        for cache in ("cold", "warm"):
            if cache == "cold":
                forget_files(scaling)
            times[cache] = first_token_seconds(base_url)
            unloaded(scaling)
        scaling.progress.say(
            "first token from zero: " + ", ".join(f"{seconds:.1f} s with {cache} files" for cache, seconds in times.items())
        )
        assert all(seconds < HOLD_SECONDS for seconds in times.values())
