"""A model without sequences on the cluster: an encoder in three segments is one model to `tritonclient`, and stays it when one is killed.

After test_first_whole.py, which deletes the sample: the workers hold one of the two.
"""

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.settings import MODELS_ON_NODE
from tests.gateway import an_encoder

pytestmark = pytest.mark.cluster

NAME = "encoder"
PODS = f"app.kubernetes.io/managed-by=splitinference,app.kubernetes.io/instance={NAME}"
WAIT_SECONDS = 300.0
RESOURCE = {
    "apiVersion": "splitinference.dev/v1alpha1",
    "kind": "SplitInference",
    "metadata": {"name": NAME},
    "spec": {
        "model": {
            "id": NAME,
            "source": {"hostPath": {"path": f"{MODELS_ON_NODE}/{NAME}"}},
            "dtype": "float32",
            "maxContextTokens": an_encoder.CONTEXT,
        },
        "workload": {"promptTokens": 6, "outputTokens": 1},
        "partition": {"minSegments": 3, "maxSegments": 3},
        "adaptation": {"mode": "Frozen"},  # a better plan is no reason for a change here
    },
}


@dataclass(frozen=True)
class Serving:
    """The gateway's two ports, and what the unsplit model gives."""

    cluster: Cluster
    http: str
    grpc: str
    expected: Mapping[str, Any]


@pytest.fixture(scope="module")
def encoder(operated: Cluster) -> Iterator[Serving]:
    """Written, served and Ready; deleted afterwards, to the last pod."""
    folder = operated.settings.models / NAME
    with operated.progress.step("write an encoder"):
        expected = written(operated, folder)
    operated.apply(json.dumps(RESOURCE))
    try:
        with operated.progress.step("wait for the encoder to be Ready"):
            stack.wait_ready(operated, NAME)
        with stack.forwarded(operated, NAME, 80) as http, stack.forwarded(operated, NAME, 8001) as grpc:
            yield Serving(operated, http, grpc, expected)
    finally:
        operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
        stack.until(
            lambda: not operated.kubectl("get", "pods", "-l", PODS, "-o", "name").strip(), WAIT_SECONDS, "the encoder's pods are gone"
        )
        shutil.rmtree(folder)


def written(cluster: Cluster, folder: Path) -> Mapping[str, Any]:
    """The model in a folder that every worker sees; gives the unsplit model's answer, as transformers has it in the segment image."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    return an_encoder.answer(stack.in_segment_image(cluster, (folder, "/out"), *an_encoder.unsplit("/out")))


def test_the_plan_is_whole_and_keeps_no_kv(encoder: Serving) -> None:
    segments = stack.resource(encoder.cluster, NAME)["status"]["plan"]["segments"]
    assert [s["start"] for s in segments] == [0, *(s["end"] for s in segments[:-1])]
    assert (len(segments), segments[-1]["end"]) == (3, an_encoder.LAYERS)
    assert len({s["node"] for s in segments}) == 3
    assert [s["kvBytes"] for s in segments] == [0, 0, 0]


def test_over_http_and_grpc_it_is_one_model_with_the_unsplit_models_answers(encoder: Serving) -> None:
    with triton_http.InferenceServerClient(encoder.http, network_timeout=WAIT_SECONDS) as client:
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        assert {tensor["name"] for tensor in client.get_model_metadata(NAME)["outputs"]} == encoder.expected.keys()
        an_encoder.same(encoder.expected, client.infer(NAME, an_encoder.inputs(triton_http)))
    with triton_grpc.InferenceServerClient(encoder.grpc) as client:
        assert client.is_server_ready()
        assert client.is_model_ready(NAME)
        told = client.get_model_metadata(NAME)
        assert {tensor.name: tensor.datatype for tensor in told.inputs} == dict.fromkeys(an_encoder.GIVEN, "INT64")
        an_encoder.same(encoder.expected, client.infer(NAME, an_encoder.inputs(triton_grpc), client_timeout=WAIT_SECONDS))


@dataclass
class Asking:
    """A client that asks until told to stop, and how long each answer took, in seconds."""

    serving: Serving
    stop: threading.Event = field(default_factory=threading.Event)
    took: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Raises what the client raises, and where an answer is another one."""
        with triton_grpc.InferenceServerClient(self.serving.grpc) as client:
            while not self.stop.wait(0.05):
                began = time.monotonic()
                found = client.infer(NAME, an_encoder.inputs(triton_grpc), client_timeout=WAIT_SECONDS)
                an_encoder.same(self.serving.expected, found)
                self.took.append(time.monotonic() - began)

    def answers(self, count: int) -> None:
        """Wait for so many more."""
        done = len(self.took)
        stack.until(lambda: len(self.took) >= done + count or self.stop.is_set(), WAIT_SECONDS, f"{count} more answers")


def test_a_killed_segment_is_a_pause_and_no_request_fails(encoder: Serving) -> None:
    victim = stack.resource(encoder.cluster, NAME)["status"]["plan"]["segments"][1]["name"]
    before = uid(encoder.cluster, victim)
    asking = Asking(encoder)
    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(asking.run)
        client.add_done_callback(lambda _: asking.stop.set())
        try:
            asking.answers(5)
            encoder.cluster.kubectl("delete", "pod", victim, "--grace-period=0", "--force")
            stack.until(lambda: uid(encoder.cluster, victim) not in {before, ""}, WAIT_SECONDS, f"another {victim}")
            stack.until(lambda: stack.settled(stack.resource(encoder.cluster, NAME)), WAIT_SECONDS, "all of the plan serves")
            asking.answers(5)
        finally:
            asking.stop.set()
        client.result()
    assert max(asking.took) > 1.0  # one of them waited for the segment


def uid(cluster: Cluster, pod: str) -> str:
    """The pod's own; empty where there is none."""
    return cluster.kubectl("get", "pod", pod, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}").strip()
