"""What `bench operator` puts into a cluster: nodes, resources with known models, and a server in place of Prometheus.

Nothing of the operator is replaced: it asks this as it asks the real one. Gateways and segments are in bench_peers.py.
"""

import json
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from splitinference.adapters.promql.queries import AGE, KIND_LABEL, VALUE
from splitinference.cli.bench.control.control_plane import FAKE, POD_ADDRESS
from splitinference.controller.api.group import API_VERSION, KIND
from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests import profile_pod
from splitinference.controller.ports import Manifest

LABEL = "bench.splitinference.dev/run"
_HIDDEN, _FEED_FORWARD, _BLOCKS, _VOCABULARY = 1024, 4096, 22, 32000
_IMAGES_ON_A_NODE = 30


def a_node(number: int, run: str, numbers: random.Random) -> Manifest:
    """A node of 8 to 32 cores, as large as kubelets write them: addresses, versions, and the images that it has."""
    name, cores = f"pretend-{run}-{number:04d}", numbers.choice((8, 16, 32))
    amounts = {"cpu": str(cores), "memory": f"{cores * 2}Gi", "pods": "110", "ephemeral-storage": "100Gi"}
    images = [
        {"names": [f"registry.example/team/image-{number}-{n}@sha256:{n:064x}"], "sizeBytes": 10**8 + n} for n in range(_IMAGES_ON_A_NODE)
    ]
    conditions = [("Ready", "True"), ("MemoryPressure", "False"), ("DiskPressure", "False"), ("PIDPressure", "False")]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {FAKE: "fake", "node.alpha.kubernetes.io/ttl": "0"},
            "labels": {
                LABEL: run,
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": f"zone-{number % 3}",
                "splitinference.dev/compute-gflops": str(cores * 20),
                "splitinference.dev/memory-bandwidth-gbps": str(cores * 5),
            },
        },
        "spec": {"taints": [{"key": FAKE, "value": "fake", "effect": "NoSchedule"}]},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "addresses": [{"type": "InternalIP", "address": POD_ADDRESS}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": kind, "status": status, "reason": "Bench"} for kind, status in conditions],
            "images": images,
        },
    }


def a_resource(name: str, namespace: str, run: str) -> Manifest:
    """A resource in three segments, on the pretend nodes alone. Its cooldown is short, so that looking for better plans is measured too."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"id": "pretend", "source": {"hostPath": {"path": "/models/pretend"}}},
            "partition": {"minSegments": 3, "maxSegments": 3},
            "placement": {"nodeSelector": {LABEL: run}, "tolerations": [{"key": FAKE, "operator": "Exists"}]},
            "adaptation": {"cooldown": "10s"},
        },
    }


def profile_of(resource: Resource) -> Manifest:
    """The ConfigMap that says what the model is: what a pod on a node would have read."""
    return profile_pod.cache_object(resource, profile_pod.pack(_CONFIG, _tensors()))


_CONFIG = {
    "model_type": "llama", "hidden_size": _HIDDEN, "num_hidden_layers": _BLOCKS, "num_attention_heads": 16, "num_key_value_heads": 4,
    "intermediate_size": _FEED_FORWARD, "vocab_size": _VOCABULARY, "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip


def _tensors() -> dict[str, list[Any]]:
    narrow = _HIDDEN // 4
    shapes = {"self_attn.q_proj": [_HIDDEN, _HIDDEN], "self_attn.o_proj": [_HIDDEN, _HIDDEN], "self_attn.k_proj": [narrow, _HIDDEN]}
    shapes |= {"self_attn.v_proj": [narrow, _HIDDEN], "mlp.down_proj": [_HIDDEN, _FEED_FORWARD]}
    shapes |= {f"mlp.{name}_proj": [_FEED_FORWARD, _HIDDEN] for name in ("gate", "up")}
    shapes |= {f"{name}_layernorm": [_HIDDEN] for name in ("input", "post_attention")}
    found = {"model.embed_tokens.weight": [_VOCABULARY, _HIDDEN], "model.norm.weight": [_HIDDEN], "lm_head.weight": [_VOCABULARY, _HIDDEN]}
    found |= {f"model.layers.{block}.{name}.weight": shape for block in range(_BLOCKS) for name, shape in shapes.items()}
    return {name: ["BF16", shape, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)] for name, shape in found.items()}


class Answers:
    """What the pretend Prometheus says: every node with a load of its own that trembles, every segment with a little."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        """`nodes`: cores by name."""
        self._cores = dict(nodes)
        self._numbers = random.Random(7)
        self._load = {name: self._numbers.uniform(0.05, 0.4) for name in nodes}
        self.segments: Sequence[tuple[str, str]] = ()
        self.queries = 0

    def query(self, text: str) -> dict[str, Any]:
        """A vector with values and ages, in the form that the operator's queries ask for."""
        self.queries += 1
        found: list[dict[str, Any]] = []
        if "container_cpu_usage_seconds_total" in text and "namespace, pod" in text:
            for namespace, pod in self.segments:
                found += _pair({"namespace": namespace, "pod": pod}, self._numbers.uniform(0.05, 0.1))
        elif "node_cpu_seconds_total" in text:
            for name, load in self._load.items():
                found += _pair({"node": name}, (load + self._numbers.uniform(-0.01, 0.01)) * self._cores[name])
        elif "node_memory_MemAvailable_bytes" in text:
            for name in self._load:
                found += _pair({"node": name}, 14 * 2**30)
        return {"status": "success", "data": {"resultType": "vector", "result": found}}


def _pair(labels: dict[str, str], value: float) -> list[dict[str, Any]]:
    return [{"metric": labels | {KIND_LABEL: kind}, "value": [0, str(number)]} for kind, number in ((VALUE, value), (AGE, 4.0))]


@contextmanager
def answering(answers: Answers) -> Iterator[str]:
    """Serve as Prometheus until the block ends. Gives its address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            data = json.dumps(answers.query(parse_qs(urlsplit(self.path).query).get("query", [""])[0])).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer((POD_ADDRESS, 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{POD_ADDRESS}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
