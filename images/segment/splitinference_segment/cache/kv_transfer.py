"""KV hand-over between segments: a segment pulls the KV of a sequence, for its own layers, from the segments that hold it.

Ops `kv_pull` (the gateway to the new segment) and `kv_export` (the new segment to each old one); see docs/reference/data-plane.md. Only
tokens that are complete are copied, so steps of the same sequence may go on at the old segments meanwhile. Nothing here runs on the
thread that computes.
"""

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any, Protocol

from splitinference_protocol.wire import answers
from splitinference_protocol.wire.errors import (
    DEADLINE_EXCEEDED,
    FAILED_INSIDE,
    INTERNAL,
    KV_MISSING,
    OVERLOADED,
    WRONG_SEGMENT,
    SegmentError,
)
from splitinference_protocol.wire.request import Hop, Request
from splitinference_segment.cache.kv import KvPiece, KvTable
from splitinference_segment.peers.hops import Reply

CHUNK_BYTES = 4 << 20  # of KV in one message: steps on the same connection wait for it
MODEL_NAME = re.compile(r"seg-(?P<digest>[0-9a-f]+)-(?P<start>\d+)-(?P<end>\d+)")
_log = logging.getLogger(__name__)

Answer = Callable[[bytes, bytes], None]


class Send(Protocol):
    """How peers are reached: hops.Hops.send."""

    def __call__(
        self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Callable[[Reply | SegmentError], None], *, most: int
    ) -> None:
        """Send; `done` is called once."""


class Counting(Protocol):
    """Where counts go."""

    def add(self, name: str, value: float, **labels: str) -> None:
        """Add to a counter."""


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks [start, end), counted from the model's first, that one source gives."""

    source: Hop
    start: int
    end: int


def blocks_of(model: str, digest: str, count: int) -> range:
    """The blocks that a segment's model holds, counted from the model's first; `count` is the number of the model's layers.

    Layer 0 is the embedding and the last one the head, so layer i is block i - 1. Empty for another model's name.
    """
    match = MODEL_NAME.fullmatch(model)
    if match is None or match["digest"] != digest:
        return range(0)
    return range(max(int(match["start"]), 1) - 1, min(int(match["end"]), count - 1) - 1)


def parts_from(wanted: range, sources: Sequence[Hop], digest: str, count: int) -> tuple[Part, ...]:
    """Which source gives which of the wanted blocks: each block once, from the first source that has it.

    SegmentError: `kv_missing` when some are with none of them.
    """
    parts: list[Part] = []
    block = wanted.start
    while block < wanted.stop:
        holding = next(((s, held) for s in sources if block in (held := blocks_of(s.model, digest, count))), None)
        if holding is None:
            raise SegmentError(KV_MISSING, f"layer {block + 1} is with none of {', '.join(s.segment for s in sources) or 'nobody'}")
        end = min(holding[1].stop, wanted.stop)
        parts.append(Part(holding[0], block, end))
        block = end
    return tuple(parts)


class KvTransfer:
    """Answers `kv_export` and `kv_pull` of one segment. Neither waits in `handle`'s thread; exports never wait for a peer."""

    def __init__(
        self, table: KvTable, model: str, first_block: int, layers: int, *, send: Send, meters: Counting, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        """`model` is this segment's Triton model, `layers` how many the whole model has; `send` reaches peers by name."""
        match = MODEL_NAME.fullmatch(model)
        self._digest = match["digest"] if match else ""
        self._table, self._layers, self._send, self._meters = table, layers, send, meters
        self._chunk_bytes = chunk_bytes
        self._own = range(first_block, first_block + table.shape.blocks)
        self._exports = ThreadPoolExecutor(1, thread_name_prefix="kv-export")
        self._pulls = ThreadPoolExecutor(4, thread_name_prefix="kv-pull")

    def handle(self, request: Request, answer: Answer, fail: Callable[[SegmentError], None]) -> None:
        """Answer one request later, by `answer` or `fail`."""
        received_at = time.monotonic()
        pool, work = (self._exports, self._export) if request.op == "kv_export" else (self._pulls, self._pull)

        def run() -> None:
            try:
                if time.monotonic() - received_at > request.deadline_ms / 1e3:
                    raise SegmentError(DEADLINE_EXCEEDED, f"{request.op} waited past its deadline")
                answer(*work(request, received_at + request.deadline_ms / 1e3))
            except SegmentError as failure:
                fail(failure)
            except Exception:  # noqa: BLE001 - whatever it is, the caller must hear of it
                _log.exception("%s failed", request.op)
                fail(SegmentError(INTERNAL, FAILED_INSIDE))

        try:
            pool.submit(run)
        except RuntimeError:
            fail(SegmentError(OVERLOADED, "the segment is stopping"))

    def stop(self) -> None:
        """Refuse what comes, drop what waits."""
        for pool in (self._exports, self._pulls):
            pool.shutdown(wait=False, cancel_futures=True)

    def _export(self, request: Request, deadline_at: float) -> Reply:
        """The KV of tokens [position, position + tokens) in the blocks asked for."""
        shape = self._table.shape
        asked = range(*request.blocks)
        if not asked or asked.start < self._own.start or asked.stop > self._own.stop:
            own = f"{self._own.start}:{self._own.stop}"
            raise SegmentError(WRONG_SEGMENT, f"blocks {asked.start}:{asked.stop} are not here, these are: {own}")
        stop = request.position + request.tokens
        buffer = self._table.read(request.sequence, stop)
        first = asked.start - self._own.start
        data = shape.exported(buffer, range(first, first + len(asked)), range(request.position, stop))
        self._meters.add("kv_sent_bytes_total", len(data))
        return answers.answer({"kv": shape.layout(len(asked), request.tokens)}), data

    def _pull(self, request: Request, deadline_at: float) -> Reply:
        """Fetch tokens [position, position + tokens) of all own blocks; the sequence then holds them all here."""
        started = time.monotonic()
        parts = parts_from(self._own, request.sources, self._digest, self._layers)
        per_token = self._table.shape.bytes_per_token
        step = max(1, self._chunk_bytes // per_token) if per_token else request.tokens
        stop = request.position + request.tokens
        for position in range(request.position, stop, max(1, step)):
            self._pull_chunk(request.sequence, parts, position, min(stop, position + step) - position, deadline_at)
        seconds, received = time.monotonic() - started, request.tokens * per_token
        self._meters.add("kv_received_bytes_total", received)
        self._meters.add("kv_transfer_seconds_total", seconds)
        return answers.answer({"held": stop, "bytes": received, "ms": round(seconds * 1e3, 3)}), b""

    def _pull_chunk(self, sequence: str, parts: Sequence[Part], position: int, tokens: int, deadline_at: float) -> None:
        left_s = deadline_at - time.monotonic()
        if left_s <= 0:
            raise SegmentError(DEADLINE_EXCEEDED, f"the deadline was over with {position} tokens pulled")
        asked = [self._ask(part, sequence, position, tokens, left_s) for part in parts]
        pieces = [self._piece(part, tokens, _await(future, part, left_s)) for part, future in zip(parts, asked, strict=True)]
        entry = self._table.begin(sequence, position, tokens, time.monotonic())
        done = 0
        try:
            self._table.shape.taken(entry.buffer, range(position, position + tokens), pieces)
            done = tokens
        finally:
            self._table.end(entry, done, time.monotonic())

    def _ask(self, part: Part, sequence: str, position: int, tokens: int, left_s: float) -> "Future[Reply | SegmentError]":
        meta = answers.question(
            "kv_export", sequence=sequence, position=position, tokens=tokens, blocks=[part.start, part.end], deadline_ms=left_s * 1e3
        )
        future: Future[Reply | SegmentError] = Future()
        most = 2 * CHUNK_BYTES + tokens * self._table.shape.bytes_per_token
        self._send(part.source, meta, b"", left_s, future.set_result, most=most)
        return future

    def _piece(self, part: Part, tokens: int, reply: Reply) -> KvPiece:
        fields: Mapping[str, Any] = answers.answered(reply[0], part.source.segment)
        blocks = range(part.start - self._own.start, part.end - self._own.start)
        expected = self._table.shape.layout(len(blocks), tokens)
        if fields.get("kv") != expected:
            raise SegmentError(WRONG_SEGMENT, f"{part.source.segment} has KV {fields.get('kv')}, here it is {expected}")
        return KvPiece(blocks, reply[1])


def _await(future: "Future[Reply | SegmentError]", part: Part, left_s: float) -> Reply:
    try:
        reply = future.result(timeout=left_s + 1.0)  # the wire ends the call by itself; this is for a callback that never comes
    except FutureTimeoutError:
        raise SegmentError(DEADLINE_EXCEEDED, f"{part.source.segment} did not send its KV in time") from None
    if isinstance(reply, SegmentError):
        raise reply
    return reply
