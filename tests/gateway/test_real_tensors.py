"""`tritonclient` against the gateway and real segments: an encoder in three Triton servers gives the unsplit model's tensors.

Runs in images/gateway/Dockerfile.test; the segment image's own Python, which has torch and transformers, makes the model and its answers.
"""

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from tests.gateway.real_segments import Segment, gateway
from tests.segment.host import free_ports

pytestmark = pytest.mark.skipif(shutil.which("segment-serve") is None, reason="needs segment-serve: images/gateway/Dockerfile.test has it")

MODEL = "encoder"
CUTS = ((0, 2), (2, 4), (4, 6))
IDS = [[5, 99, 17, 3, 150, 42], [8, 201, 77, 0, 0, 0], [30, 12, 64, 9, 0, 0]]
MASK = [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
TYPES = [[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
UNSPLIT = """
import json, sys, torch
from transformers import BertConfig, BertModel
folder, given = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(3)
config = BertConfig(vocab_size=211, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                    max_position_embeddings=64, initializer_range=0.25)
model = BertModel(config).eval()
model.save_pretrained(folder)
with torch.inference_mode():
    made = model(**{name: torch.tensor(values) for name, values in given.items()})
print(json.dumps({name: made[name].tolist() for name in ("last_hidden_state", "pooler_output")}))
"""


@dataclass
class Stack:
    """All that runs, and what the unsplit model gives."""

    http: int
    grpc: int
    segments: list[Segment]
    expected: dict[str, Any]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            return json.load(answer)


def inputs(kind: Any) -> list[Any]:
    made = []
    for name, rows in (("input_ids", IDS), ("attention_mask", MASK), ("token_type_ids", TYPES)):
        values = np.array(rows, dtype=np.int64)
        made.append(kind.InferInput(name, list(values.shape), "INT64"))
        made[-1].set_data_from_numpy(values)
    return made


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("tensors")
    model = folder / "model"
    given = json.dumps({"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES})
    command = ["/opt/segment/bin/python", "-c", UNSPLIT, str(model), given]
    done = subprocess.run(command, check=True, capture_output=True, timeout=300)
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
    }
    with gateway(settings, folder, f"http://127.0.0.1:{ports[-2]}", segments):
        yield Stack(ports[-2], ports[-1], segments, json.loads(done.stdout.splitlines()[-1]))


def same(stack: Stack, answer: Any) -> None:
    for name, rows in stack.expected.items():
        made, expected = answer.as_numpy(name), np.array(rows, dtype=np.float32)
        if name == "last_hidden_state":
            expected = expected * np.array(MASK, dtype=np.float32)[:, :, None]  # what is padding is zeros
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, expected, atol=2e-5, rtol=1e-5)


def test_over_http_and_grpc_the_chain_is_one_model(stack: Stack) -> None:
    with triton_http.InferenceServerClient(f"127.0.0.1:{stack.http}", network_timeout=300) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL)
        names = {tensor["name"] for tensor in client.get_model_metadata(MODEL)["outputs"]}
        assert names == {"last_hidden_state", "pooler_output"}
        same(stack, client.infer(MODEL, inputs(triton_http)))
    with triton_grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc}") as client:
        assert client.get_model_metadata(MODEL).inputs[0].datatype == "INT64"
        same(stack, client.infer(MODEL, inputs(triton_grpc)))


def test_a_killed_stage_is_a_pause(stack: Stack) -> None:
    stack.segments[1].kill()
    starting = threading.Timer(1.0, stack.segments[1].serve)
    starting.start()
    began = time.monotonic()
    with triton_http.InferenceServerClient(f"127.0.0.1:{stack.http}", network_timeout=300, connection_timeout=300) as client:
        same(stack, client.infer(MODEL, inputs(triton_http)))
    assert time.monotonic() - began > 1
    starting.join()
    assert stack.get("/internal/routes")["observed"]["failed"] == 0
