"""Folders of small chains, and two parties in one process."""

import json
import queue
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from splitinference.cli.secret.chain import SharedChain
from splitinference.cli.secret.dealing import Shared, material, shared_weights
from splitinference.cli.secret.party import Party
from splitinference.cli.secret.ring import decode, encode, split
from splitinference.cli.secret.store import steps_of

DENSE = [
    {"type": "Linear", "in_features": 6, "out_features": 5},
    {"type": "ReLU"},
    {"type": "Linear", "in_features": 5, "out_features": 3, "bias": False},
]
CONV = [
    {"type": "Conv2d", "in_channels": 2, "out_channels": 3, "kernel_size": [3, 2], "stride": 2, "padding": 1},
    {"type": "ReLU"},
    {"type": "Flatten"},
    {"type": "Identity"},
    {"type": "Linear", "in_features": 36, "out_features": 4},
    {"type": "ReLU"},
]
CONV1 = [
    {"type": "Conv1d", "in_channels": 2, "out_channels": 3, "kernel_size": 3, "dilation": 2, "padding": 1},
    {"type": "ReLU"},
    {"type": "Linear", "in_features": 5, "out_features": 2},
]
MODELS: dict[str, tuple[list[int], list[dict[str, Any]], dict[str, tuple[int, ...]]]] = {
    "dense": ([6], DENSE, {"0.weight": (5, 6), "0.bias": (5,), "2.weight": (3, 5)}),
    "rows of rows": ([4, 6], DENSE, {"0.weight": (5, 6), "0.bias": (5,), "2.weight": (3, 5)}),
    "conv2d": ([2, 5, 6], CONV, {"0.weight": (3, 2, 3, 2), "0.bias": (3,), "4.weight": (4, 36), "4.bias": (4,)}),
    "conv1d": ([2, 7], CONV1, {"0.weight": (3, 2, 3), "0.bias": (3,), "2.weight": (2, 5), "2.bias": (2,)}),
}


def write(folder: Path, shape: list[int], layers: list[dict[str, Any]], tensors: dict[str, Any], seed: int = 1) -> Path:
    """A model's folder; `tensors` are shapes, filled at random, or arrays."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "sequential", "input": {"shape": shape}, "layers": layers}))
    random, header, data = np.random.default_rng(seed), {}, b""
    for name, given in tensors.items():
        values = (random.normal(size=given) if isinstance(given, tuple) else np.asarray(given)).astype("<f4")
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [len(data), len(data) + values.nbytes]}
        data += values.tobytes()
    table = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(table)) + table + data)
    return folder


def model(folder: Path, name: str) -> Path:
    shape, layers, tensors = MODELS[name]
    return write(folder, shape, layers, tensors)


def opened(turn: int, mine: bytes, other: bytes) -> bytes:
    """What a round of Linear and ReLU opens: sums in rounds 0 to 2 and 10, and exclusive ors between."""
    if 3 <= turn <= 9 or len(mine) % 8:
        return bytes(a ^ b for a, b in zip(mine, other, strict=True))
    return (np.frombuffer(mine, dtype="<u8") + np.frombuffer(other, dtype="<u8")).tobytes()


def together(first: Callable[..., Any], second: Callable[..., Any]) -> tuple[Any, Any, list[bytes]]:
    """Both parties' answers, each called with its exchange, and what the first one received, each as it came and as it was opened."""
    ways: tuple[queue.Queue[bytes], queue.Queue[bytes]] = (queue.Queue(), queue.Queue())
    seen: list[bytes] = []

    def exchange(number: int) -> Callable[[bytes], bytes]:
        def swap(data: bytes) -> bytes:
            ways[1 - number].put(data)
            received = ways[number].get(timeout=60)
            assert len(received) == len(data)
            if number == 0:
                seen.extend((received, opened(len(seen) // 2, data, received)))
            return received

        return swap

    with ThreadPoolExecutor(2) as pool:
        tasks = pool.submit(first, exchange(0)), pool.submit(second, exchange(1))
        return tasks[0].result(60), tasks[1].result(60), seen


def compute(chain: SharedChain, rows: Any, weights: Shared | None = None) -> tuple[Any, list[bytes]]:
    """Outputs for [rows, size] by shares with fresh material, and what party 0 saw."""
    weights, made, steps = weights or shared_weights(chain), material(chain, len(rows)), steps_of(chain)
    shares = split(encode(rows))
    one, two, seen = together(
        lambda exchange: Party(0, weights.first, made.first, exchange).run(steps, shares[0]),
        lambda exchange: Party(1, weights.second, made.second, exchange).run(steps, shares[1]),
    )
    return decode(one + two), seen
