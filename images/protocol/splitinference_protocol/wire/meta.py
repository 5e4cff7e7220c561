"""META of the wire: requests parsed and checked once, and handed on without being written anew. See docs/reference/data-plane.md.

A request that goes along a route has a head of fixed size, which each hop writes, and a body of JSON, which the gateway writes and no hop
changes. Little-endian, without padding:

    u8 version, u8 op, u16 hops done, u8 dtype, u8 encoding, u8 dimensions, u8 0, f64 deadline in ms, u64 position, u32 each dimension; body

`op`, dtype and encoding are places in OPS, ITEM_BYTES and ENCODINGS; dtype 255 is no tensor. The body names the whole route: each hop
counts one more as done.
Anything may also be asked for in JSON alone, as `{"v": 1, "op": …}`: a first byte tells the two apart.
"""

import json
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from splitinference_protocol import VERSION
from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.errors import refuse
from splitinference_protocol.wire.fields import (
    READ_BY,
    adapter_request,
    checked_tensor,
    common_fields,
    json_object,
    number,
    short_text,
    tensor_meta,
    whole_number,
)
from splitinference_protocol.wire.operations import ALONG_A_ROUTE, OPS
from splitinference_protocol.wire.request import (
    DEFAULT_DEADLINE_MS,
    ENCODINGS,
    ITEM_BYTES,
    MAX_DEADLINE_MS,
    MAX_DIMENSIONS,
    Request,
    TensorMeta,
)

_HEAD = struct.Struct("<BBHBBBBdQ")
_DIMENSION_BYTES = 4
_NO_TENSOR = 255
_MOST_CACHED = 4096  # bytes of a body
_FIRST = bytes([VERSION])
_DTYPES = tuple(ITEM_BYTES)
_NUMBER_OF_OP: Mapping[str, int] = {op: number for number, op in enumerate(OPS)}
_NUMBER_OF_DTYPE: Mapping[str, int] = {dtype: number for number, dtype in enumerate(_DTYPES)}
_NUMBER_OF_ENCODING: Mapping[str, int] = {encoding: number for number, encoding in enumerate(ENCODINGS)}


def parse(meta: bytes) -> Request:
    """Read a request's META. SegmentError `bad_request` names the field that is wrong."""
    if meta[:1] == _FIRST:
        return _parse_head(meta)
    fields = json_object(meta)
    if fields.get("v") != VERSION:
        raise refuse(f"this segment speaks version {VERSION} of the protocol, got {fields.get('v')!r:.40}")
    op = fields.get("op")
    if op not in OPS:
        raise refuse(f"op should be one of {', '.join(OPS)}, got {op!r:.40}")
    deadline = number(fields.get("deadline_ms", DEFAULT_DEADLINE_MS), "deadline_ms", 0.0, MAX_DEADLINE_MS)
    if op in {"probe", "stats"}:
        return Request(op=op, deadline_ms=deadline)
    if op in {"adapter_load", "adapters"}:
        return adapter_request(op, fields, deadline)
    if (read := READ_BY.get(op)) is not None:
        return read(op, short_text(fields.get("sequence"), "sequence"), fields, deadline)
    common = common_fields(op, fields)
    if op in {"step", "infer"}:
        common["tensor"] = tensor_meta(fields.get("tensor"))
    if op == "step":
        common["position"] = whole_number(fields.get("position"), "position", 0)
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
        return {**json_object(meta), **fields}
    fields |= json.loads(request.body or _body(request))
    fields["route"] = [hop.as_json for hop in request.route]
    if request.op == "step":
        fields["position"] = request.position
    if (tensor := request.tensor) is not None:
        fields["tensor"] = {"dtype": tensor.dtype, "shape": list(tensor.shape)}
        if tensor.encoding != ENCODINGS[0]:
            fields["tensor"]["encoding"] = tensor.encoding
    return fields


def _parse_head(meta: bytes) -> Request:
    try:
        _, number, done, dtype, encoding, dimensions, _, deadline_ms, position = _HEAD.unpack_from(meta)
        shape = struct.unpack_from(f"<{dimensions}I", meta, _HEAD.size) if dimensions else ()
    except struct.error:
        raise refuse(f"META of {len(meta)} bytes is shorter than its head") from None
    if number >= len(OPS) or (op := OPS[number]) not in ALONG_A_ROUTE:
        raise refuse(f"operation {number} has no head")
    if not 0 <= deadline_ms <= MAX_DEADLINE_MS:
        raise refuse(f"deadline_ms should be a number from 0 to {MAX_DEADLINE_MS:g}, got {deadline_ms!r:.80}")
    tensor = _read_tensor(dtype, encoding, shape) if dtype != _NO_TENSOR else None
    if tensor is None and op in {"step", "infer"}:
        raise refuse(f"{op} needs a tensor")
    body = meta[_HEAD.size + _DIMENSION_BYTES * dimensions :]
    common = _cached_body(op, body) if len(body) <= _MOST_CACHED else common_fields(op, json_object(body))
    route = common["route"]
    if done > len(route):
        raise refuse(f"{done} hops of a route of {len(route)} are done")
    rest = {**common, "route": route[done:]} if done else common
    return Request(
        op=op, tensor=tensor, position=whole_number(position, "position", 0), deadline_ms=deadline_ms, body=body, done=done, **rest
    )


def _read_tensor(dtype: int, encoding: int, shape: tuple[int, ...]) -> TensorMeta:
    if dtype >= len(_DTYPES) or encoding >= len(ENCODINGS):
        raise refuse(f"tensor: dtype {dtype} and encoding {encoding} are not known")
    if not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise refuse(f"tensor.shape should be a list of 1 to {MAX_DIMENSIONS} sizes")
    return checked_tensor(_DTYPES[dtype], ENCODINGS[encoding], shape)


@lru_cache(maxsize=256)
def _cached_body(op: str, body: bytes) -> dict[str, Any]:
    """The steps of a sequence have the same body, but where penalties carry its tokens."""
    return common_fields(op, json_object(body))


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
        fields |= _of_step(request)
    if request.outputs:
        fields["outputs"] = request.outputs
    if request.pooling is not None:
        fields["pooling"] = request.pooling.as_json()
    if request.filter is not None:
        fields["filter"] = {"file": request.filter.file, "sample": request.filter.sample}
    if request.traceparent:
        fields["traceparent"] = request.traceparent
    return json.dumps(fields, separators=(",", ":")).encode()


def _of_step(request: Request) -> dict[str, Any]:
    """What only steps have; a field is left out where it says nothing."""
    told = {
        "logits": request.logits,
        "targets": request.targets,
        "drafts": leb128.pack(request.drafts) if request.drafts else "",
        "drop": request.drop,
        "adapter": request.adapter,
    }
    return {"sample": request.sample, "sampling": request.sampling.as_json(), **{name: value for name, value in told.items() if value}}


def question(op: str, **fields: Any) -> bytes:
    """META of a request to a peer that is not a forwarded one."""
    return json.dumps({"v": VERSION, "op": op, **fields}).encode()
