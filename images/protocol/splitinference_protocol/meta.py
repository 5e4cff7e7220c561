"""META of the wire: requests parsed and checked once, and handed on without being written anew. See docs/reference/data-plane.md.

A request that goes along a route has a head of fixed size, which each hop writes, and a body of JSON, which the gateway writes and no hop
changes. Little-endian, without padding:

    u8 version, u8 op, u16 hops done, u8 dtype, u8 encoding, u8 dimensions, u8 0, f64 deadline in ms, u64 position, u32 each dimension; body

`op` and the rest are places in the tables below; dtype 255 is no tensor. The body names the whole route: each hop counts one more as done.
Anything may also be asked for in JSON alone, as `{"v": 1, "op": …}`: a first byte tells the two apart.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from splitinference_protocol import VERSION
from splitinference_protocol.pooling import Pooling, parse_outputs, parse_pooling
from splitinference_protocol.sampling import GREEDY, Sampling, parse_sampling

OPS = ("step", "infer", "echo", "release", "probe", "stats", "kv_pull", "kv_export", "record", "recorded", "verify")
"""Operations; a new one comes last, as its place is its number."""
SIDES = INPUT, OUTPUT = "input", "output"
"""What `record` keeps of a sequence: the hidden states that a segment received, or those that it sent."""
ALONG_A_ROUTE = frozenset({"step", "infer", "echo", "release"})
GATEWAY, SEGMENT, OPERATOR = "gateway", "segment", "operator"
ROLES = (GATEWAY, SEGMENT, OPERATOR)
LOCAL = "local"  # who asks Triton itself, on the pod's own loopback
MAY: Mapping[str, frozenset[str]] = {
    GATEWAY: frozenset({"step", "infer", "release", "kv_pull", "echo", "stats", "probe", "record", "recorded", "verify"}),
    SEGMENT: frozenset({"step", "infer", "release", "kv_export", "echo"}),
    OPERATOR: frozenset({"probe"}),
    LOCAL: frozenset({"probe", "stats", "echo"}),
    "": frozenset(OPS),  # without certificates nobody can be told apart: tests and benchmarks on loopback
}
"""The operations of each role."""
ITEM_BYTES: Mapping[str, int] = {"int64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value by dtype; a new dtype comes last, as its place is its number."""
INT8 = "int8"
ENCODINGS = ("none", INT8)
INT8_BLOCK = 64  # values that share a scale: few, because single channels of hidden states are a hundred times larger than others
MAX_NAME = 256
MAX_DIMENSIONS = 8
MAX_TARGETS = 1 << 17  # characters
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
DEFAULT_DEADLINE_MS = 60_000.0
MAX_DEADLINE_MS = 86_400_000.0

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
SEGMENT_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of Services are DNS labels that begin with a letter (RFC 1035)."""
_HEAD = struct.Struct("<BBHBBBBdQ")
_DIMENSION_BYTES = 4
_NO_TENSOR = 255
_MOST_CACHED = 4096  # bytes of a body
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

    @property
    def as_json(self) -> dict[str, str]:
        """The form in META."""
        return {"segment": self.segment, "model": self.model}


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
    targets: str = ""  # the tokens that follow the step's, whose log-probabilities are asked for, packed (leb128.py)
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
    # Of `infer` alone: which outputs are wanted, all of the model's own where none is named; and how `sentence_embedding` is made.
    outputs: tuple[str, ...] = ()
    pooling: Pooling | None = None
    # As it came, where it came with a head: what is handed on.
    body: bytes = b""
    done: int = 0


_FIRST = bytes([VERSION])
_DTYPES = tuple(ITEM_BYTES)
_NUMBER_OF_OP: Mapping[str, int] = {op: number for number, op in enumerate(OPS)}
_NUMBER_OF_DTYPE: Mapping[str, int] = {dtype: number for number, dtype in enumerate(_DTYPES)}
_NUMBER_OF_ENCODING: Mapping[str, int] = {encoding: number for number, encoding in enumerate(ENCODINGS)}
_MOST_SIZE = 1 << 31
_WRONG_ENCODING = f"tensor.encoding should be one of {', '.join(ENCODINGS)}, and int8 for hidden states […, hidden] alone"


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
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str) or value["dtype"] not in ITEM_BYTES:
        raise _refuse(f"tensor should name a dtype of {', '.join(ITEM_BYTES)} and a shape")
    shape = value.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise _refuse(f"tensor.shape should be a list of 1 to {MAX_DIMENSIONS} sizes")
    encoding = value.get("encoding", ENCODINGS[0])
    if encoding not in ENCODINGS:
        raise _refuse(_WRONG_ENCODING)
    return _checked(value["dtype"], encoding, tuple(_integer(size, "tensor.shape", 1, _MOST_SIZE) for size in shape))


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


def _wanted(fields: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"outputs": parse_outputs(fields.get("outputs", [])), "pooling": parse_pooling(fields.get("pooling"))}
    except ValueError as wrong:
        raise _refuse(str(wrong)) from None


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
    if side not in SIDES or not isinstance(last, bool):
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
"""Operations about a sequence that one peer is asked for, along no route."""


def check_role(op: str, role: str) -> None:
    """SegmentError `forbidden` when a peer of this role may not ask for the operation."""
    if op not in MAY.get(role, ()):
        raise SegmentError(FORBIDDEN, f"{op} is not for the role {role or 'none'}")


def parse(meta: bytes) -> Request:
    """Read a request's META. SegmentError `bad_request` names the field that is wrong."""
    if meta[:1] == _FIRST:
        return _parse_head(meta)
    fields = _object(meta)
    if fields.get("v") != VERSION:
        raise _refuse(f"this segment speaks version {VERSION} of the protocol, got {fields.get('v')!r:.40}")
    op = fields.get("op")
    if op not in OPS:
        raise _refuse(f"op should be one of {', '.join(OPS)}, got {op!r:.40}")
    deadline = _number(fields.get("deadline_ms", DEFAULT_DEADLINE_MS), "deadline_ms", 0.0, MAX_DEADLINE_MS)
    if op in {"probe", "stats"}:
        return Request(op=op, deadline_ms=deadline)
    if (read := _READ_BY.get(op)) is not None:
        return read(op, _name(fields.get("sequence"), "sequence"), fields, deadline)
    common = _common(op, fields)
    if op in {"step", "infer"}:
        common["tensor"] = _tensor(fields.get("tensor"))
    if op == "step":
        common["position"] = _integer(fields.get("position"), "position", 0)
    return Request(op=op, deadline_ms=deadline, **common)


def encoded(request: Request) -> bytes:
    """META of a request along a route, as its first segment gets it. ValueError for another operation: see `question`."""
    if request.op not in ALONG_A_ROUTE:
        raise ValueError(f"{request.op} does not go along a route")
    return _head(request, request.tensor, request.deadline_ms, 0) + _body(request)


def forwarded(request: Request, tensor: TensorMeta | None, deadline_ms: float) -> bytes:
    """META for the next hop: the body as it came, and a head with one more hop done, what is left of the time, and the new tensor."""
    return _head(request, tensor, deadline_ms, request.done + 1) + (request.body or _body(request))


def described(meta: bytes) -> dict[str, Any]:
    """The fields of a request as JSON alone would have them: for tests and logs. Nothing is checked that `parse` does not check."""
    request = parse(meta)
    fields: dict[str, Any] = {"v": VERSION, "op": request.op, "deadline_ms": request.deadline_ms}
    if request.op not in ALONG_A_ROUTE:
        return {**_object(meta), **fields}
    fields |= json.loads(request.body or _body(request))
    fields["route"] = [hop.as_json for hop in request.route]
    if request.op == "step":
        fields["position"] = request.position
    if (tensor := request.tensor) is not None:
        fields["tensor"] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        if tensor.encoding != ENCODINGS[0]:
            fields["tensor"]["encoding"] = tensor.encoding
    return fields


def _object(meta: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(meta)
    except (ValueError, RecursionError):
        raise _refuse("META is not JSON") from None
    if not isinstance(fields, dict):
        raise _refuse("META should be a JSON object")
    return fields


def _parse_head(meta: bytes) -> Request:
    try:
        _, number, done, dtype, encoding, dimensions, _, deadline_ms, position = _HEAD.unpack_from(meta)
        shape = struct.unpack_from(f"<{dimensions}I", meta, _HEAD.size) if dimensions else ()
    except struct.error:
        raise _refuse(f"META of {len(meta)} bytes is shorter than its head") from None
    if number >= len(OPS) or (op := OPS[number]) not in ALONG_A_ROUTE:
        raise _refuse(f"operation {number} has no head")
    if not 0 <= deadline_ms <= MAX_DEADLINE_MS:
        raise _refuse(f"deadline_ms should be a number from 0 to {MAX_DEADLINE_MS:g}, got {deadline_ms!r:.80}")
    tensor = _read_tensor(dtype, encoding, shape) if dtype != _NO_TENSOR else None
    if tensor is None and op in {"step", "infer"}:
        raise _refuse(f"{op} needs a tensor")
    body = meta[_HEAD.size + _DIMENSION_BYTES * dimensions :]
    common = _cached_body(op, body) if len(body) <= _MOST_CACHED else _common(op, _object(body))
    route = common["route"]
    if done > len(route):
        raise _refuse(f"{done} hops of a route of {len(route)} are done")
    rest = {**common, "route": route[done:]} if done else common
    return Request(op=op, tensor=tensor, position=_integer(position, "position", 0), deadline_ms=deadline_ms, body=body, done=done, **rest)


def _read_tensor(dtype: int, encoding: int, shape: tuple[int, ...]) -> TensorMeta:
    if dtype >= len(_DTYPES) or encoding >= len(ENCODINGS):
        raise _refuse(f"tensor: dtype {dtype} and encoding {encoding} are not known")
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise _refuse(f"tensor.shape should be a list of 1 to {MAX_DIMENSIONS} sizes")
    return _checked(_DTYPES[dtype], ENCODINGS[encoding], shape)


def _checked(dtype: str, encoding: str, shape: tuple[int, ...]) -> TensorMeta:
    if encoding == INT8 and (len(shape) < 2 or dtype == "int64"):
        raise _refuse(_WRONG_ENCODING)
    for size in shape:
        if not 1 <= size <= _MOST_SIZE:
            raise _refuse(f"tensor.shape should be a whole number of 1 at least, got {size}")
    return TensorMeta(dtype, shape, encoding)


@lru_cache(maxsize=256)
def _cached_body(op: str, body: bytes) -> dict[str, Any]:
    """The steps of a sequence have the same body, but where penalties carry its tokens."""
    return _common(op, _object(body))


def _common(op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a body says, or JSON alone beside head and tensor, as arguments of Request."""
    common: dict[str, Any] = {"route": _route(fields.get("route", []))}
    if op == "echo":
        return common
    if op == "infer":
        return common | _wanted(fields) | {"traceparent": _traceparent(fields)}
    common |= {"sequence": _name(fields.get("sequence"), "sequence"), "prefix": _prefix(fields.get("prefix"))}
    if op == "release":
        return common
    sample, logits = fields.get("sample", False), fields.get("logits", False)
    if not isinstance(sample, bool) or not isinstance(logits, bool):
        raise _refuse("sample and logits should be true or false")
    return common | {
        "sample": sample,
        "logits": logits,
        "sampling": _sampling(fields.get("sampling", {})),
        "targets": _targets(fields.get("targets", "")),
        "traceparent": _traceparent(fields),
    }


def _traceparent(fields: Mapping[str, Any]) -> str:
    """What is no trace context is left out, as W3C asks."""
    given = fields.get("traceparent")
    return given if isinstance(given, str) and _TRACEPARENT.fullmatch(given) else ""


def _head(request: Request, tensor: TensorMeta | None, deadline_ms: float, done: int) -> bytes:
    number, position = _NUMBER_OF_OP[request.op], request.position
    if tensor is None:
        return _HEAD.pack(VERSION, number, done, _NO_TENSOR, 0, 0, 0, deadline_ms, position)
    dtype, encoding, shape = _NUMBER_OF_DTYPE[tensor.dtype], _NUMBER_OF_ENCODING[tensor.encoding], tensor.shape
    head = _HEAD.pack(VERSION, number, done, dtype, encoding, len(shape), 0, deadline_ms, position)
    return head + struct.pack(f"<{len(shape)}I", *shape)


def _body(request: Request) -> bytes:
    """Written once, by who asks first."""
    fields: dict[str, Any] = {"route": [hop.as_json for hop in request.route]}
    if request.op in {"step", "release"}:
        fields["sequence"] = request.sequence
    if request.prefix is not None:
        fields["prefix"] = {"block": request.prefix.block, "hashes": request.prefix.hashes}
    if request.op == "step":
        fields |= {"sample": request.sample, "sampling": request.sampling.as_json()}
        if request.logits:
            fields["logits"] = True
        if request.targets:
            fields["targets"] = request.targets
    if request.outputs:
        fields["outputs"] = request.outputs
    if request.pooling is not None:
        fields["pooling"] = request.pooling.as_json()
    if request.traceparent:
        fields["traceparent"] = request.traceparent
    return json.dumps(fields, separators=(",", ":")).encode()


def question(op: str, **fields: Any) -> bytes:
    """META of a request to a peer that is not a forwarded one."""
    return json.dumps({"v": VERSION, "op": op, **fields}).encode()
