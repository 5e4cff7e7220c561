"""Adapters of one segment: they arrive in pieces while the segment serves, are loaded when they are whole, and are dropped when nobody
needs them. Without torch: an engine loads them.
"""

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitinference_protocol.wire.errors import ADAPTER_FULL, ADAPTER_MISSING, BAD_REQUEST, SegmentError
from splitinference_protocol.wire.request import MAX_ADAPTERS, Request
from splitinference_segment.engine import Adapters

IDLE_S = 60.0
"""A part of which no further piece came for so long is forgotten."""


@dataclass(slots=True)
class _Arriving:
    """The pieces of one part that have come."""

    total: int
    sha256: str
    used_at: float
    content: bytearray = field(default_factory=bytearray)


class AdapterParts:
    """What a segment holds of adapters. Safe to use from several threads. Times in seconds, of one monotonic clock."""

    def __init__(self, engine: Adapters | None) -> None:
        """None: this engine has no adapters."""
        self._engine = engine
        self._arriving: dict[str, _Arriving] = {}
        self._lock = threading.Lock()

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes of each adapter that is loaded, by digest."""
        return {} if self._engine is None else self._engine.held()

    def get(self, digest: str) -> Any:
        """The adapter, as the engine holds it. SegmentError `adapter_missing` when it is not loaded."""
        found = self._of().get(digest)
        if found is None:
            raise SegmentError(ADAPTER_MISSING, f"the adapter {digest} is not loaded here")
        return found

    def handle(self, request: Request, data: memoryview, now: float) -> dict[str, Any]:
        """Take a piece (`adapter_load`), or drop what is not kept (`adapters`); the fields of the answer.

        SegmentError: `bad_request` for a piece that does not continue, or an adapter that does not fit the layers; `adapter_full` when the
        memory for adapters does not suffice.
        """
        with self._lock:
            self._arriving = {digest: part for digest, part in self._arriving.items() if now - part.used_at <= IDLE_S}
            if request.op == "adapter_load":
                return self._take(request, data, now)
            if request.keep is not None and self._engine is not None:
                for digest in set(self._engine.held()) - set(request.keep):
                    self._engine.drop(digest)
            return {"adapters": dict(self.held), "budget": self._engine.budget if self._engine is not None else 0}

    def _of(self) -> Adapters:
        if self._engine is None:
            raise SegmentError(BAD_REQUEST, "this segment's engine has no adapters")
        return self._engine

    def _take(self, request: Request, data: memoryview, now: float) -> dict[str, Any]:
        engine, piece, digest = self._of(), request.piece, request.adapter
        assert piece is not None  # noqa: S101 - what the protocol has checked
        held = engine.held()
        if digest in held:
            return {"loaded": True, "bytes": held[digest]}
        part = self._arriving.get(digest)
        if piece.offset == 0:
            self._arriving.pop(digest, None)
            self._check_room(engine, piece.total)
            part = self._arriving[digest] = _Arriving(piece.total, piece.sha256, now)
        if part is None or (part.total, part.sha256) != (piece.total, piece.sha256) or piece.offset != len(part.content):
            has = len(part.content) if part is not None else 0
            raise SegmentError(BAD_REQUEST, f"the piece begins at byte {piece.offset} of {piece.total}, and {has} bytes are here")
        if len(part.content) + len(data) > part.total or not len(data):
            raise SegmentError(BAD_REQUEST, f"a piece of {len(data)} bytes at byte {piece.offset} is not within {piece.total} bytes")
        part.content += data
        part.used_at = now
        if len(part.content) < part.total:
            return {"loaded": False, "came": len(part.content)}
        del self._arriving[digest]
        if hashlib.sha256(part.content).hexdigest() != part.sha256:
            raise SegmentError(BAD_REQUEST, "the pieces do not have the digest that was stated")
        engine.load(digest, bytes(part.content))
        return {"loaded": True, "bytes": engine.held()[digest]}

    def _check_room(self, engine: Adapters, wanted: int) -> None:
        """What arrives counts as if it were loaded."""
        held = engine.held()
        taken = sum(held.values()) + sum(part.total for part in self._arriving.values())
        if taken + wanted > engine.budget:
            raise SegmentError(
                ADAPTER_FULL,
                f"the adapter needs {wanted} bytes here; {taken} of {engine.budget} bytes for adapters are taken (segments.adapterMemory)",
            )
        if len(held) + len(self._arriving) >= MAX_ADAPTERS:
            raise SegmentError(ADAPTER_FULL, f"{MAX_ADAPTERS} adapters are held, and no more are taken")
