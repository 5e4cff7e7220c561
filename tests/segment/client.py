"""A small client of the data plane, for tests: one gRPC connection to the first segment, and a generate loop as the gateway has it."""

import itertools
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from splitinference_segment.hops import infer_request, outputs_of

_NAMES = itertools.count()


@dataclass
class Client:
    """Speaks to the first of `route`, a list of (segment, model, port)."""

    route: Sequence[tuple[str, str, int]]
    timings: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{self.route[0][2]}")
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def hops(self) -> list[dict[str, str]]:
        return [{"segment": segment, "model": model} for segment, model, _ in self.route[1:]]

    def call(self, meta: dict[str, Any] | bytes, data: bytes = b"", timeout_s: float = 60.0) -> dict[str, Any]:
        raw = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
        answer, _ = outputs_of(self._stub.ModelInfer(infer_request(self.route[0][1], raw, data), timeout=timeout_s))
        parsed: dict[str, Any] = json.loads(answer)
        return parsed

    def step(self, sequence: str, position: int, tokens: Sequence[int], sample: bool = True, **changes: Any) -> dict[str, Any]:
        meta = {
            "v": 1,
            "op": "step",
            "sequence": sequence,
            "position": position,
            "tensor": {"dtype": "int64", "shape": [len(tokens)]},
            "route": self.hops(),
            "sample": sample,
            "sampling": {"temperature": 0.0},
            "deadline_ms": 30000,
        }
        return self.call({**meta, **changes}, struct.pack(f"<{len(tokens)}q", *tokens))

    def release(self, sequence: str) -> dict[str, Any]:
        return self.call({"v": 1, "op": "release", "sequence": sequence, "route": self.hops()})

    def stats(self) -> dict[str, Any]:
        return self.call({"v": 1, "op": "stats"})

    def generate(
        self, prompt: Sequence[int], count: int, chunk: int = 0, sequence: str = "", end_token: int | None = None, **sampling: Any
    ) -> list[int]:
        """`count` tokens after `prompt`, the prefill in chunks of `chunk` tokens (0: whole). Fails on any error answer."""
        name = sequence or f"s{next(_NAMES)}"
        pieces = [prompt[i : i + chunk] for i in range(0, len(prompt), chunk)] if chunk else [prompt]
        position, out = 0, []
        settings = {"temperature": 0.0, **sampling}
        for i, piece in enumerate(pieces):
            answer = self.step(name, position, piece, sample=i == len(pieces) - 1, sampling=settings)
            if "error" in answer:
                raise AssertionError(answer)
            position += len(piece)
        out.append(answer["token"])
        while len(out) < count and out[-1] != end_token:
            answer = self.step(name, position, out[-1:], sampling=settings)
            if "error" in answer:
                raise AssertionError(answer)
            self.timings = answer["timings"]
            position += 1
            out.append(answer["token"])
        self.release(name)
        return out
