"""Segments in one process, without servers: layers, KV and hand-over as in a segment, stepped as the gateway does it."""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.errors import NEXT_HOP_FAILED, SegmentError
from splitinference_protocol.wire.request import Hop, Prefix
from splitinference_segment.cache.kv import KvLimits, KvTable
from splitinference_segment.cache.kv_transfer import CHUNK_BYTES, KvTransfer
from splitinference_segment.peers.hops import Reply
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.spans import Span

DIGEST = "abcd1234"


class Nothing:
    """Counts that nobody looks at."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Forget it."""


class Network:
    """Segments that reach each other by name, in this process; what crosses is bytes, as over a wire."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.exported: list[tuple[str, int, int]] = []
        self.broken: set[str] = set()

    def send(
        self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Callable[[Reply | SegmentError], None], *, most: int
    ) -> None:
        if hop.segment in self.broken:
            done(SegmentError(NEXT_HOP_FAILED, f"{hop.segment} is gone"))
            return
        request = protocol.parse(meta)
        self.exported.append((hop.segment, request.position, request.tokens))
        stage = self.stages[hop.segment]
        stage.transfer.handle(request, lambda m, d: done((m, d)), lambda failure: done((answers.error(failure, hop.segment), b"")))

    def close(self) -> None:
        for stage in self.stages.values():
            stage.transfer.stop()


class Stage:
    """One segment's layers, KV and transfer."""

    def __init__(self, network: Network, layers: Layers, name: str, *, kv_tokens: int = 10_000, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.layers, self.name = layers, name
        limits = KvLimits(4, kv_tokens * max(1, layers.kv_shape.bytes_per_token), 256, 60.0)
        self.table = KvTable(layers.kv_shape, limits)
        model = f"seg-{DIGEST}-{layers.start}-{layers.end}"
        first = layers.first_block if layers.kv_shape.blocks else 0
        self.transfer = KvTransfer(self.table, model, first, layers.count, send=network.send, meters=Nothing(), chunk_bytes=chunk_bytes)
        self.hop = Hop(name, model)
        network.stages[name] = self

    def pull(self, sequence: str, position: int, tokens: int, sources: Sequence[Hop]) -> dict[str, Any]:
        """The answer's META, as the gateway would see it."""
        hops = [{"segment": hop.segment, "model": hop.model} for hop in sources]
        meta = answers.question("kv_pull", sequence=sequence, position=position, tokens=tokens, sources=hops, deadline_ms=10_000)
        return self.asked(meta)

    def asked(self, meta: bytes) -> dict[str, Any]:
        told: SimpleQueue[bytes] = SimpleQueue()
        self.transfer.handle(protocol.parse(meta), lambda m, _: told.put(m), lambda failure: told.put(answers.error(failure, self.name)))
        return dict(json.loads(told.get(timeout=30)))


class Chain:
    """A pipeline of stages, stepped as the gateway does it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = stages

    def step(self, tokens: Sequence[int], position: int, sequence: str = "s", prefix: Prefix | None = None) -> torch.Tensor:
        """Logits, float32 [vocabulary], after the last of `tokens`."""
        return self.steps({sequence: (tokens, position)}, prefix)[sequence]

    def steps(self, work: Mapping[str, tuple[Sequence[int], int]], prefix: Prefix | None = None) -> dict[str, torch.Tensor]:
        """Steps of several sequences, (tokens, position) by name, in one row; the logits of each."""
        starts = [0, *itertools.accumulate(len(tokens) for tokens, _ in work.values())]
        values = torch.tensor([token for tokens, _ in work.values() for token in tokens])
        with torch.inference_mode():
            for stage in self.stages:
                entries = [stage.table.begin(name, position, len(tokens), 0.0, prefix) for name, (tokens, position) in work.items()]
                spans = [
                    Span(entry, start, len(tokens), position)
                    for entry, start, (tokens, position) in zip(entries, starts, work.values(), strict=False)
                ]
                values = stage.layers.run(values, spans)
                for entry, span in zip(entries, spans, strict=True):
                    stage.table.end(entry, span.tokens, 0.0)
            logits = self.stages[-1].layers.logits(values[[end - 1 for end in starts[1:]]])
            return dict(zip(work, logits, strict=True))

    def take_over(self, old: "Chain", position: int, tokens: int, sequence: str = "s") -> None:
        """Every stage pulls `tokens` from `position` on from the stages of the old chain."""
        for stage in self.stages:
            answer = stage.pull(sequence, position, tokens, [source.hop for source in old.stages])
            assert answer.get("held") == position + tokens, answer

    def greedy(self, tokens: list[int], held: int, count: int, sequence: str = "s", prefix: Prefix | None = None) -> int:
        """Append `count` greedy tokens; returns how many tokens are held then. The prefix is the first step's."""
        for number in range(count):
            logits = self.step(tokens[held:], held, sequence, None if number else prefix)
            held = len(tokens)
            tokens.append(int(logits.argmax()))
        return held


class Parts:
    """Layers of one model by range, loaded once each."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self._folder, self._dtype = folder, dtype
        self._loaded: dict[tuple[int, int], Layers] = {}

    def chain(self, network: Network, name: str, cuts: Sequence[int]) -> Chain:
        stages = []
        for start, end in itertools.pairwise(cuts):
            if (start, end) not in self._loaded:
                self._loaded[start, end] = Layers(self._folder, start, end, self._dtype)
            stages.append(Stage(network, self._loaded[start, end], f"{name}-{start}-{end}"))
        return Chain(stages)
