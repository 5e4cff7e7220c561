"""Segments of the llama.cpp engine in one process: engines, KV tables and hand-over as in a segment, stepped as the gateway does it."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import Hop, Prefix, Request, TensorMeta
from splitinference_segment.cache.kv import KvLimits, KvTable
from splitinference_segment.cache.kv_transfer import KvTransfer
from splitinference_segment.engine import Output, Work
from splitinference_segment.llamacpp.engine import LlamaEngine
from splitinference_segment.peers.hops import Reply
from splitinference_segment.settings import Settings

DIGEST = "abcd1234"
CONTEXT = 256


def engine(path: Path, start: int, end: int, *, dtype: str = "float32", sequences: int = 4, threads: int = 1) -> LlamaEngine:
    """Layers [start, end) of the file."""
    return LlamaEngine(
        Settings(
            "x", f"seg-{DIGEST}-{start}-{end}", path, start, end, engine="llamacpp", dtype=dtype, max_context_tokens=CONTEXT,
            max_sequences=sequences, threads=threads,
        )
    )  # fmt: skip


def cuts(blocks: int, segments: int) -> list[int]:
    """Layers of so many segments with about as many blocks each: edges, from 0 to the number of layers."""
    inner = [1 + round(blocks * i / segments) for i in range(1, segments)]
    return [0, *inner, blocks + 2]


class Nothing:
    """Counts that nobody looks at."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Forget it."""


class Stage:
    """One segment: engine, KV table, hand-over. `stages` are those that it reaches."""

    def __init__(self, made: LlamaEngine, name: str, stages: "dict[str, Stage]", chunk_bytes: int = 1 << 16) -> None:
        self.engine, self.name, self._stages = made, name, stages
        self.table = KvTable(made.kv_shape, KvLimits(4, 1 << 30, CONTEXT, 60.0))
        model = f"seg-{DIGEST}-{made.start}-{made.end}"
        self.transfer = KvTransfer(
            self.table, model, made.first_block, made.count, send=self._send, meters=Nothing(), chunk_bytes=chunk_bytes
        )
        self.hop = Hop(name, model)
        stages[name] = self

    def _send(
        self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Callable[[Reply | SegmentError], None], *, most: int
    ) -> None:
        other = self._stages[hop.segment]
        other.transfer.handle(
            protocol.parse(meta), lambda m, d: done((m, d)), lambda failure: done((answers.error(failure, hop.segment), b""))
        )

    def pull(self, sequence: str, position: int, tokens: int, sources: Sequence[Hop]) -> dict[str, Any]:
        """The answer's META."""
        hops = [{"segment": hop.segment, "model": hop.model} for hop in sources]
        meta = answers.question("kv_pull", sequence=sequence, position=position, tokens=tokens, sources=hops, deadline_ms=60_000)
        told: SimpleQueue[bytes] = SimpleQueue()
        self.transfer.handle(protocol.parse(meta), lambda m, _: told.put(m), lambda failure: told.put(answers.error(failure, self.name)))
        return dict(json.loads(told.get(timeout=60)))


class Chain:
    """A pipeline of stages. Hidden states cross from one to the next as bytes, as over a wire."""

    def __init__(
        self, path: Path, edges: Sequence[int], *, name: str = "a", encoding: str = "none", stages: dict[str, Stage] | None = None,
        **more: Any,
    ) -> None:  # fmt: skip
        self._encoding, self._dtype = encoding, more.get("dtype", "float32")
        reached = stages if stages is not None else {}
        self.stages = [Stage(engine(path, *pair, **more), f"{name}-{pair[0]}", reached) for pair in itertools.pairwise(edges)]

    def run(self, work: Mapping[str, tuple[Sequence[int], int]], prefix: Prefix | None = None, **asked: Any) -> dict[str, Output]:
        """Steps of several sequences, (tokens, position) by name, in one batch; what the last stage gives for each."""
        fields = {"sample": True, "logits": True, **asked}
        values: dict[str, Any] = {name: np.array(tokens, np.int64) for name, (tokens, _) in work.items()}
        for stage in self.stages:
            batch = []
            for name, (tokens, position) in work.items():
                request = Request("step", name, position, TensorMeta("int64", (len(tokens),)), **fields)
                entry = stage.table.begin(name, position, len(tokens), 0.0, prefix, request.drop)
                batch.append(Work(request, values[name], entry))
            outputs = stage.engine.run(batch)
            for each in batch:
                stage.table.end(each.entry, each.tokens, 0.0)
            if not stage.engine.is_last:
                arrays = stage.engine.arrays
                for name, output in zip(work, outputs, strict=True):
                    data = arrays.data(output.hidden, self._encoding)
                    meta = TensorMeta(self._dtype, tuple(output.hidden.shape), self._encoding)
                    values[name] = arrays.received(meta, memoryview(data))
        return dict(zip(work, outputs, strict=True))

    def logits(self, tokens: Sequence[int], position: int, sequence: str = "s", prefix: Prefix | None = None) -> np.ndarray:
        """float32 [vocabulary], after the last of `tokens`."""
        found: np.ndarray = self.run({sequence: (tokens, position)}, prefix)[sequence].logits
        return found

    def take_over(self, old: "Chain", position: int, tokens: int, sequence: str = "s") -> None:
        """Every stage pulls `tokens` from `position` on from the stages of the old chain."""
        for stage in self.stages:
            answer = stage.pull(sequence, position, tokens, [source.hop for source in old.stages])
            assert answer.get("held") == position + tokens, answer

    def close(self) -> None:
        for stage in self.stages:
            stage.transfer.stop()
