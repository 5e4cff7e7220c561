"""Reads the fields of META from JSON, each checked: SegmentError `bad_request` names the one that is wrong."""

import json
import re
from collections.abc import Mapping
from typing import Any

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.errors import refuse
from splitinference_protocol.wire.operations import BESIDE, SIDES
from splitinference_protocol.wire.pooling import parse_outputs, parse_pooling
from splitinference_protocol.wire.request import (
    ADAPTER_DIGEST,
    ENCODINGS,
    INT8,
    ITEM_BYTES,
    MAX_ADAPTERS,
    MAX_DIMENSIONS,
    MAX_DRAFTS,
    MAX_HASHES,
    MAX_NAME,
    MAX_ROUTE,
    MAX_TARGETS,
    AdapterPiece,
    Hop,
    Prefix,
    Request,
    TensorMeta,
)
from splitinference_protocol.wire.sampling import Sampling, parse_sampling

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_SIZE = 1 << 31
_WRONG_ENCODING = f"tensor.encoding should be one of {', '.join(ENCODINGS)}, and int8 for hidden states […, hidden] alone"


def json_object(meta: bytes) -> dict[str, Any]:
    """A whole META of JSON."""
    try:
        fields = json.loads(meta)
    except (ValueError, RecursionError):
        raise refuse("META is not JSON") from None
    if not isinstance(fields, dict):
        raise refuse("META should be a JSON object")
    return fields


def whole_number(value: Any, name: str, least: int, most: int = 2**63 - 1) -> int:
    """A whole number from `least` to `most`; `name` is the field's, for the message."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise refuse(f"{name} should be a whole number of {least} at least, got {value!r:.80}")
    return value


def number(value: Any, name: str, least: float, most: float) -> float:
    """A number from `least` to `most`."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise refuse(f"{name} should be a number from {least:g} to {most:g}, got {value!r:.80}")
    return float(value)


def short_text(value: Any, name: str) -> str:
    """A text that is not empty, of MAX_NAME characters at most."""
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_NAME:
        raise refuse(f"{name} should be a text of 1 to {MAX_NAME} characters, got {value!r:.80}")
    return value


def _route(value: Any) -> tuple[Hop, ...]:
    if not isinstance(value, list) or len(value) > MAX_ROUTE or not all(isinstance(hop, dict) for hop in value):
        raise refuse(f"route should be a list of {{segment, model}}, {MAX_ROUTE} at most")
    return tuple(Hop(short_text(hop.get("segment"), "route.segment"), short_text(hop.get("model"), "route.model")) for hop in value)


def tensor_meta(value: Any) -> TensorMeta:
    """The tensor that DATA holds."""
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str) or value["dtype"] not in ITEM_BYTES:
        raise refuse(f"tensor should name a dtype of {', '.join(ITEM_BYTES)} and a shape")
    shape = value.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise refuse(f"tensor.shape should be a list of 1 to {MAX_DIMENSIONS} sizes")
    encoding = value.get("encoding", ENCODINGS[0])
    if encoding not in ENCODINGS:
        raise refuse(_WRONG_ENCODING)
    return checked_tensor(value["dtype"], encoding, tuple(whole_number(size, "tensor.shape", 1, _MOST_SIZE) for size in shape))


def checked_tensor(dtype: str, encoding: str, shape: tuple[int, ...]) -> TensorMeta:
    """The tensor, where its encoding and its sizes may be."""
    if encoding == INT8 and (len(shape) < 2 or dtype == "int64"):
        raise refuse(_WRONG_ENCODING)
    for size in shape:
        if not 1 <= size <= _MOST_SIZE:
            raise refuse(f"tensor.shape should be a whole number of 1 at least, got {size}")
    return TensorMeta(dtype, shape, encoding)


def _sampling(value: Any) -> Sampling:
    try:
        return parse_sampling(value)
    except ValueError as wrong:
        raise refuse(str(wrong)) from None


def _targets(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TARGETS:
        raise refuse(f"targets should be a text of {MAX_TARGETS} characters at most")
    return value


def _drafts(value: Any) -> tuple[int, ...]:
    try:
        made = tuple(leb128.numbers(value)) if isinstance(value, str) and len(value) <= MAX_DRAFTS * 8 else None
    except ValueError as wrong:
        raise refuse(f"drafts: {wrong}") from None
    if made is None or len(made) > MAX_DRAFTS:
        raise refuse(f"drafts should be {MAX_DRAFTS} token ids at most, packed")
    return made


def _prefix(value: Any) -> Prefix | None:
    if value is None:
        return None
    hashes = value.get("hashes") if isinstance(value, dict) else None
    if not isinstance(hashes, list) or not 1 <= len(hashes) <= MAX_HASHES:
        raise refuse(f"prefix should be {{block, hashes}}, with 1 to {MAX_HASHES} hashes")
    return Prefix(whole_number(value.get("block"), "prefix.block", 1, 1 << 20), tuple(short_text(each, "prefix.hashes") for each in hashes))


def wanted_outputs(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Of `infer`: the outputs and the pooling, as arguments of Request."""
    try:
        return {"outputs": parse_outputs(fields.get("outputs", [])), "pooling": parse_pooling(fields.get("pooling"))}
    except ValueError as wrong:
        raise refuse(str(wrong)) from None


def _traceparent(fields: Mapping[str, Any]) -> str:
    """What is no trace context is left out, as W3C asks."""
    given = fields.get("traceparent")
    return given if isinstance(given, str) and _TRACEPARENT.fullmatch(given) else ""


def common_fields(op: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What a body says, or JSON alone beside head and tensor, as arguments of Request."""
    common: dict[str, Any] = {"route": _route(fields.get("route", []))}
    if op == "echo":
        return common
    if op == "infer":
        return common | wanted_outputs(fields) | {"traceparent": _traceparent(fields)}
    common |= {"sequence": short_text(fields.get("sequence"), "sequence"), "prefix": _prefix(fields.get("prefix"))}
    if op == "release":
        return common
    sample, logits = fields.get("sample", False), fields.get("logits", False)
    if not isinstance(sample, bool) or not isinstance(logits, bool):
        raise refuse("sample and logits should be true or false")
    return common | {
        "sample": sample,
        "logits": logits,
        "sampling": _sampling(fields.get("sampling", {})),
        "targets": _targets(fields.get("targets", "")),
        "drafts": _drafts(fields.get("drafts", "")),
        "drop": whole_number(fields.get("drop", 0), "drop", 0, MAX_DRAFTS),
        "adapter": _adapter(fields.get("adapter")) if "adapter" in fields else "",
        "traceparent": _traceparent(fields),
    }


def _adapter(value: Any) -> str:
    if not isinstance(value, str) or not ADAPTER_DIGEST.fullmatch(value):
        raise refuse(f"adapter should be the digest of an adapter, 32 hexadecimal digits, got {value!r:.80}")
    return value


def adapter_request(op: str, fields: Mapping[str, Any], deadline_ms: float) -> Request:
    """`adapter_load` and `adapters`: what the loader and the operator ask for."""
    if op == "adapters":
        keep = fields.get("keep")
        if keep is not None and (not isinstance(keep, list) or len(keep) > MAX_ADAPTERS):
            raise refuse(f"keep should be a list of digests, {MAX_ADAPTERS} at most")
        return Request(op=op, keep=None if keep is None else tuple(map(_adapter, keep)), deadline_ms=deadline_ms)
    told = fields.get("piece")
    piece = told if isinstance(told, dict) else {}
    total = whole_number(piece.get("total"), "piece.total", 1, _MOST_SIZE)
    offset = whole_number(piece.get("offset"), "piece.offset", 0, total - 1)
    sha256 = piece.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise refuse("piece.sha256 should be 64 hexadecimal digits")
    return Request(op=op, adapter=_adapter(fields.get("adapter")), piece=AdapterPiece(offset, total, sha256), deadline_ms=deadline_ms)


def _transfer(op: str, sequence: str, fields: Mapping[str, Any], deadline_ms: float) -> Request:
    blocks = fields.get("blocks", [0, 0])
    if not isinstance(blocks, list) or len(blocks) != 2:
        raise refuse("blocks should be [first, end]")
    return Request(
        op=op,
        sequence=sequence,
        position=whole_number(fields.get("position"), "position", 0, 1 << 31),
        tokens=whole_number(fields.get("tokens"), "tokens", 1, 1 << 31),
        sources=_route(fields.get("sources", [])),
        blocks=(whole_number(blocks[0], "blocks", 0), whole_number(blocks[1], "blocks", 0)),
        deadline_ms=deadline_ms,
    )


def _verification(op: str, sequence: str, fields: Mapping[str, Any], deadline_ms: float) -> Request:
    """What the gateway asks for beside the chain."""
    if op not in {"record", "recorded"}:
        position, tensor = whole_number(fields.get("position"), "position", 0, 1 << 31), tensor_meta(fields.get("tensor"))
        return Request(op=op, sequence=sequence, position=position, tensor=tensor, deadline_ms=deadline_ms)
    side, last = fields.get("side"), fields.get("last", False)
    if side not in SIDES or not isinstance(last, bool):
        raise refuse("side should be input or output, and last true or false")
    return Request(
        op=op,
        sequence=sequence,
        side=side,
        position=whole_number(fields.get("position", 0), "position", 0, 1 << 31),
        tokens=whole_number(fields.get("tokens", 0), "tokens", 0, 1 << 31),
        last=last,
        deadline_ms=deadline_ms,
    )


READ_BY = {"kv_pull": _transfer, "kv_export": _transfer, **dict.fromkeys(BESIDE, _verification)}
"""Operations about a sequence that one peer is asked for, along no route."""
