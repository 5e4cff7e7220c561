"""META of answers. One that comes back along a route has before its body what each stage took: a hop adds its own, and reads no JSON.

Little-endian, without padding: u8 version, u8 0, u16 number of timings; then each, the first stage's first:

    u16 bytes of the segment's name, u16 bytes of the node's name, f64 each: queue, compute, hop and held in ms, and the share; both names

A share that is not said is not a number. The body is a JSON object, as the last stage wrote it. Errors, and answers without timings, are
JSON alone: `{"v": 1, …}`. A first byte tells the two apart.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_protocol import VERSION
from splitinference_protocol.wire.errors import NEXT_HOP_FAILED, SegmentError
from splitinference_protocol.wire.request import MAX_ROUTE

MOST_NAME = 1024  # bytes
_HEAD = struct.Struct("<BBH")
_TIMING = struct.Struct("<HH5d")
_FIRST = bytes([VERSION])
_NAN = float("nan")


@dataclass(slots=True)
class Timing:
    """What one stage says of one step, in milliseconds.

    `hop_ms` from sending to the next stage until its answer, `held_ms` from receiving until answering. `share`: of what was computed
    together, this step's, 0..1; None: not said. `node` is where it runs.
    """

    segment: str
    queue_ms: float = 0.0
    compute_ms: float = 0.0
    hop_ms: float = 0.0
    held_ms: float = 0.0
    share: float | None = None
    node: str = ""

    @property
    def as_json(self) -> dict[str, Any]:
        """The form in JSON alone."""
        times = {name: round(getattr(self, name), 3) for name in ("queue_ms", "compute_ms", "hop_ms", "held_ms")}
        share = {} if self.share is None else {"share": round(self.share, 3)}
        return {"segment": self.segment, **times, **share, "node": self.node}


def timed(timing: Timing, body: Mapping[str, Any]) -> bytes:
    """The answer of the last stage of a route. `body` has neither version nor timings."""
    return _HEAD.pack(VERSION, 0, 1) + _record(timing) + json.dumps(body, separators=(",", ":")).encode()


def first_timing(meta: bytes) -> Timing | None:
    """What the stage that answered took; None for an answer without timings, such as an error, which is handed on as it is."""
    if meta[:1] != _FIRST:
        return None
    try:
        _, _, number = _HEAD.unpack_from(meta)
        return _timing(meta, _HEAD.size)[0] if 0 < number <= MAX_ROUTE else None
    except (struct.error, ValueError):
        return None


def relayed(timing: Timing, meta: bytes) -> bytes:
    """The answer of a stage before: with its own timing first. For what `first_timing` has found one in."""
    _, _, number = _HEAD.unpack_from(meta)
    return b"".join((_HEAD.pack(VERSION, 0, number + 1), _record(timing), meta[_HEAD.size :]))


def read(meta: bytes) -> tuple[dict[str, Any], tuple[Timing, ...]]:
    """Fields and timings of any answer. ValueError for what is none; fields of JSON alone are not checked, its timings are."""
    if meta[:1] != _FIRST:
        fields = _object(meta)
        return fields, tuple(_read_timing(each) for each in _listed(fields.pop("timings", None)))
    if len(meta) < _HEAD.size:
        raise ValueError(f"an answer of {len(meta)} bytes")
    _, _, number = _HEAD.unpack_from(meta)
    timings, at = [], _HEAD.size
    for _ in range(number):
        timing, at = _timing(meta, at)
        timings.append(timing)
    return _object(meta[at:]), tuple(timings)


def described(meta: bytes) -> dict[str, Any]:
    """Any answer as JSON alone would have it: for who asked so, tests and logs. ValueError for what is none."""
    fields, timings = read(meta)
    return {"v": VERSION, **fields, **({"timings": [timing.as_json for timing in timings]} if timings else {})}


def in_json(meta: bytes) -> bytes:
    """The same in JSON alone, for who asked in JSON alone."""
    return json.dumps(described(meta)).encode() if meta[:1] == _FIRST else meta


def question(op: str, **fields: Any) -> bytes:
    """META of a request to one peer, which goes along no route."""
    return json.dumps({"v": VERSION, "op": op, **fields}).encode()


def answered(meta: bytes, segment: str) -> dict[str, Any]:
    """The fields of a peer's answer to such a request. SegmentError: the peer's own, or `next_hop_failed` when it makes no sense."""
    try:
        fields = json.loads(meta)
        problem = fields.get("error")
        if problem is not None:
            raise SegmentError(str(problem["code"]), f"{segment}: {problem['message']}")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as wrong:
        raise SegmentError(NEXT_HOP_FAILED, f"{segment} gave an answer that makes no sense") from wrong
    return dict(fields)


def answer(fields: Mapping[str, Any]) -> bytes:
    """META of an answer without timings."""
    return json.dumps({"v": VERSION, **fields}).encode()


def error(failure: SegmentError, segment: str) -> bytes:
    """META of a failed request, naming the segment that failed."""
    return answer({"error": {"code": failure.code, "message": failure.message, "segment": segment}})


def _record(timing: Timing) -> bytes:
    segment, node = timing.segment.encode(), timing.node.encode()
    share = _NAN if timing.share is None else timing.share
    times = (timing.queue_ms, timing.compute_ms, timing.hop_ms, timing.held_ms, share)
    return b"".join((_TIMING.pack(len(segment), len(node), *times), segment, node))


def _timing(meta: bytes, at: int) -> tuple[Timing, int]:
    """The timing that begins there, and where it ends. ValueError for what is none."""
    try:
        of_segment, of_node, queue, compute, hop, held, share = _TIMING.unpack_from(meta, at)
    except struct.error:
        raise ValueError("an answer that ends within its timings") from None
    middle = at + _TIMING.size + of_segment
    end = middle + of_node
    if of_segment > MOST_NAME or of_node > MOST_NAME or end > len(meta):
        raise ValueError("an answer that ends within its timings")
    segment, node = meta[at + _TIMING.size : middle].decode(), meta[middle:end].decode()
    return _checked(Timing(segment, queue, compute, hop, held, None if math.isnan(share) else share, node)), end


def _read_timing(said: Any) -> Timing:
    try:
        share = said.get("share")
        queue, compute, hop, held = (float(said.get(name) or 0) for name in ("queue_ms", "compute_ms", "hop_ms", "held_ms"))
        node = str(said.get("node", ""))
        return _checked(Timing(str(said["segment"]), queue, compute, hop, held, None if share is None else float(share), node))
    except (KeyError, TypeError, AttributeError) as wrong:
        raise ValueError(f"a timing that makes no sense: {said!r:.80}") from wrong


def _checked(timing: Timing) -> Timing:
    """Figures are averaged and shown: one that is no number would spoil all others."""
    for name, value in (("queue", timing.queue_ms), ("compute", timing.compute_ms), ("hop", timing.hop_ms), ("held", timing.held_ms)):
        if not 0 <= value < math.inf:
            raise ValueError(f"a {name} time of {value} ms")
    if timing.share is not None and not 0 <= timing.share <= 1:
        raise ValueError(f"a share of {timing.share}")
    return timing


def _listed(timings: Any) -> list[Any]:
    if timings is None:
        return []
    if not isinstance(timings, list):
        raise ValueError("timings that are no list")
    return timings


def _object(meta: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(meta)
    except (ValueError, RecursionError):
        raise ValueError("META is no JSON") from None
    if not isinstance(fields, dict):
        raise ValueError("META is no object")
    return fields
