"""KServe v2 over HTTP, with Triton's extension for binary tensors: to `tritonclient` the whole chain is one model."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from splitinference_gateway.client_requests.cache_control import CacheControl
from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.tensor_io.kserve_body import HEADER_LENGTH, Asked
from splitinference_gateway.tensor_io.signature import Signature
from splitinference_gateway.tensor_io.tensors import Tensor, TensorSpec

VERSION = "1"
_MOST_NUMBERS = 1 << 20
_AT_A_TIME = 1 << 14
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False)
_CONFIG_TYPES: Mapping[str, str] = {"INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}


def server_metadata() -> dict[str, object]:
    """GET /v2."""
    return {"name": "splitinference", "version": "2", "extensions": ["binary_tensor_data", "model_configuration"]}


def model_metadata(name: str, signature: Signature) -> dict[str, object]:
    """GET /v2/models/{name}."""

    def told(specs: Sequence[TensorSpec]) -> list[dict[str, object]]:
        return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

    platform = f"splitinference_{signature.kind.value}"
    return {"name": name, "versions": [VERSION], "platform": platform, "inputs": told(signature.inputs), "outputs": told(signature.outputs)}


def model_config(name: str, signature: Signature) -> dict[str, object]:
    """GET /v2/models/{name}/config: the part of Triton's model configuration that clients read."""

    def told(spec: TensorSpec) -> dict[str, object]:
        fields: dict[str, object] = {"name": spec.name, "data_type": _CONFIG_TYPES[spec.datatype], "dims": list(spec.shape)}
        return fields | ({"optional": True} if spec.optional else {})

    return {
        "name": name,
        "platform": "",
        "backend": "splitinference",
        "max_batch_size": 0,
        "input": [told(spec) for spec in signature.inputs],
        "output": [told(spec) for spec in signature.outputs],
    }


async def infer_response(name: str, asked: Asked, made: Sequence[Tensor]) -> Response:
    """The answer, with binary data after the JSON where it was asked for.

    Raises:
        ApiError: 400, the numbers are too many for JSON, or none that JSON has.
    """
    told, tail = [], bytearray()
    as_json = sum(math.prod(tensor.shape) for tensor in made if not asked.outputs.get(tensor.name, asked.binary))
    if as_json > _MOST_NUMBERS:
        message = f"The answer has {as_json} numbers; JSON carries at most {_MOST_NUMBERS}. Ask for binary outputs (binary_data)."
        raise invalid(message, "outputs", "answer_too_large")
    for tensor in made:
        fields: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if asked.outputs.get(tensor.name, asked.binary):
            fields["parameters"] = {"binary_data_size": len(tensor.data)}
            tail += tensor.data
        else:
            fields["data"] = tensor.numbers()
            await asyncio.sleep(0)
        told.append(fields)
    head = {"model_name": name, "model_version": VERSION, "outputs": told} | ({"id": asked.number} if asked.number else {})
    raw = await _written(head)
    if not tail:
        return Response(raw, media_type="application/json")
    return Response(raw + bytes(tail), headers={HEADER_LENGTH: str(len(raw)), "Content-Type": "application/octet-stream"})


async def _written(head: Mapping[str, object]) -> bytes:
    """As JSON, with a look at the event loop between pieces: a million numbers take long."""
    pieces, length = [], 0
    try:
        for piece in _ENCODER.iterencode(head):
            pieces.append(piece)
            length += 1
            if length % _AT_A_TIME == 0:
                await asyncio.sleep(0)
    except ValueError:
        message = "The model's answer has numbers that JSON does not have (infinite, or none). Ask for binary outputs (binary_data)."
        raise invalid(message, "outputs", "not_in_json") from None
    return "".join(pieces).encode()


def error_response(error: ApiError) -> JSONResponse:
    """An error in KServe's shape."""
    return JSONResponse({"error": error.message}, error.status, dict(error.headers))


def check_version(version: str) -> None:
    """Raise ApiError 404 for a version that is not there; empty means any."""
    if version not in ("", VERSION):
        raise ApiError(404, f"The model has version {VERSION}, not {version!r:.40}.", code="model_not_found")


def header_length(request: Request) -> str | None:
    """The length of the JSON in front of binary data, as the client said it. ApiError 400 for a compressed body."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise invalid("Compressed requests are not supported.", "content-encoding", "unsupported_parameter")
    return request.headers.get(HEADER_LENGTH)


async def infer(gateway: Gateway, name: str, asked: Asked, client: str, control: CacheControl) -> Response:
    """POST /v2/models/{name}/infer."""
    adapter = gateway.adapter(name)
    run = partial(gateway.inference.run, asked.inputs, list(asked.outputs), client, adapter)
    made, kept = await gateway.reuse.inferred(asked.inputs, list(asked.outputs), client, control, run, adapter=adapter)
    response = await infer_response(name, asked, made)
    response.headers.update(kept)
    return response
