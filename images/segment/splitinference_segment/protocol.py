"""The META tensor: requests parsed and checked once, answers and errors written. See docs/reference/data-plane.md."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_segment.sampling_meta import GREEDY, Sampling, parse_sampling

VERSION = 1
OPS = ("step", "infer", "echo", "release", "probe", "stats", "kv_pull", "kv_export", "record", "recorded", "verify")
LOCAL = "local"  # who asks Triton itself, on the pod's own loopback
MAY: Mapping[str, frozenset[str]] = {
    "gateway": frozenset({"step", "infer", "release", "kv_pull", "echo", "stats", "probe", "record", "recorded", "verify"}),
    "segment": frozenset({"step", "infer", "release", "kv_export", "echo"}),
    "operator": frozenset({"probe"}),
    LOCAL: frozenset({"probe", "stats", "echo"}),
    "": frozenset(OPS),  # without certificates nobody can be told apart: tests and benchmarks on loopback
}
"""The operations of each role."""
ITEM_BYTES: Mapping[str, int] = {"int64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
INT8 = "int8"
ENCODINGS = ("none", INT8)
INT8_BLOCK = 64  # values that share a scale: few, because single channels of hidden states are a hundred times larger than others
MAX_NAME = 256
MAX_DIMENSIONS = 8
MAX_TARGETS = 1 << 17  # characters
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
DEFAULT_DEADLINE_MS = 60_000.0

BAD_REQUEST = "bad_request"
KV_MISSING = "kv_missing"
KV_FULL = "kv_full"
NEXT_HOP_FAILED = "next_hop_failed"
WRONG_SEGMENT = "wrong_segment"
OVERLOADED = "overloaded"
DEADLINE_EXCEEDED = "deadline_exceeded"
INTERNAL = "internal"
FORBIDDEN = "forbidden"
NOT_RECORDED = "not_recorded"
FAILED_INSIDE = "the segment failed; its log says why"
"""What others are told of a failure that nobody foresaw: its own words may name paths."""
MAX_ROUTE = 1024  # hops
MAX_HASHES = 1 << 16


class SegmentError(Exception):
    """An expected failure of one request: one of the contract's codes, and a sentence with the numbers."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Hop:
    """One further segment of the route: the name of its Service, and of the Triton model in it."""

    segment: str
    model: str


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What DATA holds: dtype and shape; the first dimension counts tokens. `encoding`: none, or how the values are packed (encoding.py)."""

    dtype: str
    shape: tuple[int, ...]
    encoding: str = "none"

    @property
    def tokens(self) -> int:
        """How many tokens the tensor carries."""
        return self.shape[0]

    @property
    def byte_size(self) -> int:
        """Bytes that DATA must have."""
        if self.encoding == INT8:
            *rows, hidden = self.shape
            return math.prod(rows) * -(-hidden // INT8_BLOCK) * (INT8_BLOCK + 4)
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a sequence begins with: one name for each whole block of `block` tokens, which stands for it and for all before it."""

    block: int
    hashes: tuple[str, ...]

    def shares(self, other: "Prefix", tokens: int) -> bool:
        """Both begin with the same `tokens`, a whole number of blocks."""
        number = tokens // self.block
        same = self.block == other.block and 0 < number <= min(len(self.hashes), len(other.hashes))
        return same and self.hashes[number - 1] == other.hashes[number - 1]


@dataclass(frozen=True, slots=True)
class Request:
    """One request's META. `tensor` is set for `step` and `infer`; `deadline_ms` is what is left when the request arrives.

    `logits`: a step that samples gives the logits of its last position instead of a token.
    """

    op: str
    sequence: str = ""
    position: int = 0
    tensor: TensorMeta | None = None
    route: tuple[Hop, ...] = ()
    sample: bool = False
    logits: bool = False
    sampling: Sampling = GREEDY
    targets: str = ""  # the tokens that follow the step's, whose log-probabilities are asked for, packed (history.py)
    deadline_ms: float = DEFAULT_DEADLINE_MS
    traceparent: str = ""  # W3C trace context of the step, handed on as it came; empty: not traced
    # Of `kv_pull` and `kv_export` alone: how many tokens from `position` on, who has them, and which of the model's blocks.
    tokens: int = 0
    sources: tuple[Hop, ...] = ()
    blocks: tuple[int, int] = (0, 0)
    # Of `record` and `recorded` alone: what the segment received or what it sent; `last`: nothing more is recorded.
    side: str = ""
    last: bool = False
    # Of a sequence's first step and of `release`: whose KV it may begin with, and what of its own may be kept for others.
    prefix: Prefix | None = None


def _refuse(message: str) -> SegmentError:
    return SegmentError(BAD_REQUEST, message)


def _integer(value: Any, name: str, least: int, most: int = 2**63 - 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _refuse(f"{name} should be a whole number of {least} at least, got {value!r:.80}")
    return value


def _number(value: Any, name: str, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise _refuse(f"{name} should be a number from {least:g} to {most:g}, got {value!r:.80}")
    return float(value)


def _name(value: Any, name: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise _refuse(f"{name} should be a text of 1 to {MAX_NAME} characters, got {value!r:.80}")
    return value


def _route(value: Any) -> tuple[Hop, ...]:
    if not isinstance(value, list) or len(value) > MAX_ROUTE or not all(isinstance(hop, dict) for hop in value):
        raise _refuse(f"route should be a list of {{segment, model}}, {MAX_ROUTE} at most")
    return tuple(Hop(_name(hop.get("segment"), "route.segment"), _name(hop.get("model"), "route.model")) for hop in value)


def _tensor(value: Any) -> TensorMeta:
    if not isinstance(value, dict) or value.get("dtype") not in ITEM_BYTES:
        raise _refuse(f"tensor should name a dtype of {', '.join(ITEM_BYTES)} and a shape")
    shape = value.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise _refuse(f"tensor.shape should be a list of 1 to {MAX_DIMENSIONS} sizes")
    encoding = value.get("encoding", "none")
    if encoding not in ENCODINGS or (encoding == INT8 and (len(shape) < 2 or value["dtype"] == "int64")):
        raise _refuse(f"tensor.encoding should be one of {', '.join(ENCODINGS)}, and int8 for hidden states […, hidden] alone")
    return TensorMeta(value["dtype"], tuple(_integer(size, "tensor.shape", 1, 1 << 31) for size in shape), encoding)


def _sampling(value: Any) -> Sampling:
    try:
        return parse_sampling(value)
    except ValueError as wrong:
        raise _refuse(str(wrong)) from None


def _targets(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TARGETS:
        raise _refuse(f"targets should be a text of {MAX_TARGETS} characters at most")
    return value


def _prefix(value: Any) -> Prefix | None:
    if value is None:
        return None
    hashes = value.get("hashes") if isinstance(value, dict) else None
    if not isinstance(hashes, list) or not 1 <= len(hashes) <= MAX_HASHES:
        raise _refuse(f"prefix should be {{block, hashes}}, with 1 to {MAX_HASHES} hashes")
    return Prefix(_integer(value.get("block"), "prefix.block", 1, 1 << 20), tuple(_name(each, "prefix.hashes") for each in hashes))


def _transfer(op: str, sequence: str, fields: Mapping[str, Any], deadline_ms: float) -> Request:
    blocks = fields.get("blocks", [0, 0])
    if not isinstance(blocks, list) or len(blocks) != 2:
        raise _refuse("blocks should be [first, end]")
    return Request(
        op=op,
        sequence=sequence,
        position=_integer(fields.get("position"), "position", 0, 1 << 31),
        tokens=_integer(fields.get("tokens"), "tokens", 1, 1 << 31),
        sources=_route(fields.get("sources", [])),
        blocks=(_integer(blocks[0], "blocks", 0), _integer(blocks[1], "blocks", 0)),
        deadline_ms=deadline_ms,
    )


def _verification(op: str, sequence: str, fields: Mapping[str, Any], deadline_ms: float) -> Request:
    """`record`, `recorded` and `verify`: what the gateway asks for beside the chain."""
    if op == "verify":
        position, tensor = _integer(fields.get("position"), "position", 0, 1 << 31), _tensor(fields.get("tensor"))
        return Request(op=op, sequence=sequence, position=position, tensor=tensor, deadline_ms=deadline_ms)
    side, last = fields.get("side"), fields.get("last", False)
    if side not in ("input", "output") or not isinstance(last, bool):
        raise _refuse("side should be input or output, and last true or false")
    return Request(
        op=op,
        sequence=sequence,
        side=side,
        position=_integer(fields.get("position", 0), "position", 0, 1 << 31),
        tokens=_integer(fields.get("tokens", 0), "tokens", 0, 1 << 31),
        last=last,
        deadline_ms=deadline_ms,
    )


_READ_BY = {"kv_pull": _transfer, "kv_export": _transfer, "record": _verification, "recorded": _verification, "verify": _verification}
"""Operations about a sequence that have fields of their own."""


def check_role(op: str, role: str) -> None:
    """SegmentError `forbidden` when a peer of this role may not ask for the operation."""
    if op not in MAY.get(role, ()):
        raise SegmentError(FORBIDDEN, f"{op} is not for the role {role or 'none'}")


def parse(meta: bytes) -> Request:
    """Read a request's META. SegmentError `bad_request` names the field that is wrong."""
    try:
        fields = json.loads(meta)
    except (ValueError, RecursionError):
        raise _refuse("META is not JSON") from None
    if not isinstance(fields, dict):
        raise _refuse("META should be a JSON object")
    if fields.get("v") != VERSION:
        raise _refuse(f"this segment speaks version {VERSION} of the protocol, got {fields.get('v')!r:.40}")
    op = fields.get("op")
    if op not in OPS:
        raise _refuse(f"op should be one of {', '.join(OPS)}, got {op!r:.40}")
    deadline = _number(fields.get("deadline_ms", DEFAULT_DEADLINE_MS), "deadline_ms", 0.0, 86_400_000.0)
    if op in {"probe", "stats"}:
        return Request(op=op, deadline_ms=deadline)
    route = _route(fields.get("route", []))
    if op == "echo":
        return Request(op=op, route=route, deadline_ms=deadline)
    if op == "infer":
        tensor = _tensor(fields.get("tensor"))
        return Request(op=op, tensor=tensor, route=route, deadline_ms=deadline, traceparent=_traceparent(fields))
    sequence = _name(fields.get("sequence"), "sequence")
    if (read := _READ_BY.get(op)) is not None:
        return read(op, sequence, fields, deadline)
    if op == "release":
        return Request(op=op, sequence=sequence, route=route, prefix=_prefix(fields.get("prefix")), deadline_ms=deadline)
    sample, logits = fields.get("sample", False), fields.get("logits", False)
    if not isinstance(sample, bool) or not isinstance(logits, bool):
        raise _refuse("sample and logits should be true or false")
    return Request(
        op=op,
        sequence=sequence,
        position=_integer(fields.get("position"), "position", 0),
        tensor=_tensor(fields.get("tensor")),
        route=route,
        sample=sample,
        logits=logits,
        sampling=_sampling(fields.get("sampling", {})),
        targets=_targets(fields.get("targets", "")),
        prefix=_prefix(fields.get("prefix")),
        deadline_ms=deadline,
        traceparent=_traceparent(fields),
    )


def _traceparent(fields: Mapping[str, Any]) -> str:
    """What is no trace context is left out, as W3C asks."""
    given = fields.get("traceparent")
    return given if isinstance(given, str) and _TRACEPARENT.fullmatch(given) else ""


def forwarded(request: Request, tensor: TensorMeta | None, deadline_ms: float) -> bytes:
    """META for the next hop: the same request with the rest of the route, what is left of the time, and the new tensor."""
    fields: dict[str, Any] = {
        "v": VERSION,
        "op": request.op,
        "sequence": request.sequence,
        "route": [{"segment": hop.segment, "model": hop.model} for hop in request.route[1:]],
        "deadline_ms": round(deadline_ms, 3),
    }
    if request.traceparent:
        fields["traceparent"] = request.traceparent
    if request.prefix is not None:
        fields["prefix"] = {"block": request.prefix.block, "hashes": request.prefix.hashes}
    if tensor is not None:
        encoding = {} if tensor.encoding == "none" else {"encoding": tensor.encoding}
        fields["tensor"] = {"dtype": tensor.dtype, "shape": list(tensor.shape), **encoding}
    if tensor is not None and request.op != "infer":
        fields |= {
            "position": request.position,
            "sample": request.sample,
            "logits": request.logits,
            "sampling": request.sampling.as_json(),
        }
        if request.targets:
            fields["targets"] = request.targets
    return json.dumps(fields).encode()


def question(op: str, **fields: Any) -> bytes:
    """META of a request to a peer that is not a forwarded one."""
    return json.dumps({"v": VERSION, "op": op, **fields}).encode()


def answered(meta: bytes, segment: str) -> dict[str, Any]:
    """The fields of a peer's answer to such a request. SegmentError: the peer's own, or `next_hop_failed` when it makes no sense."""
    try:
        fields = json.loads(meta)
        problem = fields.get("error")
        if problem is not None:
            raise SegmentError(str(problem["code"]), f"{segment}: {problem['message']}")
    except (ValueError, AttributeError, KeyError, TypeError) as wrong:
        raise SegmentError(NEXT_HOP_FAILED, f"{segment} gave an answer that makes no sense") from wrong
    return dict(fields)


def answer(fields: Mapping[str, Any]) -> bytes:
    """META of an answer."""
    return json.dumps({"v": VERSION, **fields}).encode()


def error(failure: SegmentError, segment: str) -> bytes:
    """META of a failed request, naming the segment that failed."""
    return answer({"error": {"code": failure.code, "message": failure.message, "segment": segment}})
