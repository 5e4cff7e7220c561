"""A small client of the data plane, for tests: one wire to the first segment, as a gateway has it, and a generate loop."""

import itertools
import json
import queue
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from splitinference_protocol.wire import answers
from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire import WireError
from splitinference_segment.peers.wire_client import Wire

_NAMES = itertools.count()
_MOST = 64 << 20


@dataclass
class Client:
    """Speaks to the first of `route`, a list of (segment, model, port of its wire)."""

    route: Sequence[tuple[str, str, int]]
    identity: Identity | None
    timings: list[dict[str, Any]] = field(default_factory=list)
    _wire: Wire | None = None

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()

    def hops(self) -> list[dict[str, str]]:
        return [{"segment": segment, "model": model} for segment, model, _ in self.route[1:]]

    def exchange(self, meta: dict[str, Any] | bytes, data: bytes = b"", timeout_s: float = 60.0) -> tuple[dict[str, Any], bytes]:
        """META and DATA of the answer. WireError or TimeoutError when there is none; a lost wire is opened again."""
        raw = meta if isinstance(meta, bytes) else json.dumps(meta).encode()
        if self._wire is None or not self._wire.alive:
            self._wire = Wire("127.0.0.1", self.route[0][2], self.route[0][1], self.identity)
        came: queue.Queue[tuple[bytes, bytes] | WireError | TimeoutError] = queue.Queue()
        self._wire.send(raw, data, timeout_s, came.put, _MOST)
        answer = came.get(timeout=timeout_s + 5)
        if not isinstance(answer, tuple):
            raise answer
        return answers.described(answer[0]), answer[1]

    def call(self, meta: dict[str, Any] | bytes, data: bytes = b"", timeout_s: float = 60.0) -> dict[str, Any]:
        return self.exchange(meta, data, timeout_s)[0]

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
