"""`tritonclient` against the gateway and real segments: an encoder in three Triton servers gives the unsplit model's tensors.

Runs in images/gateway/Dockerfile.test; the segment image's own Python, which has torch and transformers, makes the model and its answers.
"""

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.gateway import an_encoder
from tests.gateway.real_segments import Inside, Segment, gateway
from tests.segment.host import free_ports

pytestmark = pytest.mark.skipif(shutil.which("segment-serve") is None, reason="needs segment-serve: images/gateway/Dockerfile.test has it")

MODEL = "encoder"
CUTS = ((0, 2), (2, 4), (4, 6))


@dataclass
class Stack:
    """All that runs, and what the unsplit model gives."""

    http: int
    grpc: int
    segments: list[Segment]
    expected: dict[str, Any]
    inside: Inside

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return json.load(answer)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tensors")
    model = folder / "model"
    done = subprocess.run(an_encoder.unsplit(str(model)), check=True, capture_output=True, text=True, timeout=300)
    ports = free_ports(3 * len(CUTS) + 2)
    addresses = {f"{MODEL}-{start}-{end}": f"127.0.0.1:{ports[3 * i + 1]}" for i, (start, end) in enumerate(CUTS)}
    segments = [
        Segment(MODEL, *cut, ports[3 * i : 3 * i + 3], addresses, folder / f"segment-{i}.log", str(model)) for i, cut in enumerate(CUTS)
    ]
    for segment in segments:
        segment.serve()
    route_file = folder / "route.json"
    route_file.write_text(json.dumps({"v": 1, "revision": "r1", "pipelines": [[s.hop for s in segments]]}))
    settings = {
        "SI_MODEL_ID": MODEL,
        "SI_MODEL_PATH": str(model),
        "SI_ROUTE_FILE": str(route_file),
        "SI_PEER_ADDRESSES": json.dumps(addresses),
        "SI_PORT": str(ports[-2]),
        "SI_KSERVE_PORT": str(ports[-1]),
        "SI_MAX_CONTEXT_TOKENS": "64",
        "SI_REPLAY_SECONDS": "300",
        **(inside := Inside.of(folder)).settings,
    }
    with gateway(settings, folder, f"http://127.0.0.1:{ports[-2]}", segments):
        yield Stack(ports[-2], ports[-1], segments, an_encoder.answer(done.stdout), inside)


def test_over_http_and_grpc_the_chain_is_one_model(stack: Stack) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{stack.http}", network_timeout=300) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        names = {tensor["name"] for tensor in client.get_model_metadata(MODEL)["outputs"]}
        assert names == {"last_hidden_state", "pooler_output"}
        an_encoder.same(stack.expected, client.infer(MODEL, an_encoder.inputs(triton_http)))
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc}") as client:
        assert client.get_model_metadata(MODEL).inputs[0].datatype == "INT64"
        an_encoder.same(stack.expected, client.infer(MODEL, an_encoder.inputs(triton_grpc)))


def test_a_killed_stage_is_a_pause(stack: Stack) -> None:
    stack.segments[1].kill()
    served = threading.Event()

    def serve() -> None:
        stack.segments[1].serve()
        served.set()

    starting = threading.Timer(1.0, serve)
    starting.start()
    with triton_http.InferenceServerClient(f"127.0.0.1:{stack.http}", network_timeout=300, connection_timeout=300) as client:
        an_encoder.same(stack.expected, client.infer(MODEL, an_encoder.inputs(triton_http)))
    assert served.is_set(), "no answer without the killed stage"
    starting.join()
    assert stack.inside.routes()["observed"]["failed"] == 0
