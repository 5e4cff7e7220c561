"""KServe v2 over HTTP, with Triton's extension for binary tensors: to `tritonclient` the whole chain is one model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.signature import Signature
from splitinference_gateway.tensors import Tensor, TensorSpec, checked_shape

VERSION = "1"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_CONFIG_TYPES: Mapping[str, str] = {"INT64": "TYPE_INT64", "FP32": "TYPE_FP32"}


@dataclass(frozen=True)
class Asked:
    """One infer request: the inputs, which outputs, and which of those as binary data."""

    inputs: tuple[Tensor, ...]
    number: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)  # name → binary; empty: all
    binary: bool = False


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


def parse_infer(body: bytes, header_length: str | None) -> Asked:
    """Read the body of an infer request.

    Raises:
        ApiError: 400, saying what is wrong.
    """
    if header_length is not None and not (header_length.isdigit() and int(header_length) <= len(body)):
        raise invalid(f"{_HEADER_LENGTH} is {header_length!r:.40}, the body has {len(body)} bytes.")
    length = len(body) if header_length is None else int(header_length)
    try:
        head = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise invalid(f"We could not parse the JSON of your request: {error}") from error
    if not isinstance(head, dict) or not isinstance(head.get("inputs"), list):
        raise invalid("The request must be a JSON object with a list of inputs.", "inputs", "missing_required_parameter")
    tensors, rest = [], body[length:]
    for given in head["inputs"]:
        tensor, rest = _input(given, rest)
        tensors.append(tensor)
    if rest:
        raise invalid(f"{len(rest)} bytes follow the last binary input.")
    outputs: dict[str, bool] = {}
    binary = _parameters(head).get("binary_data_output") is True
    listed = head.get("outputs") or []
    if not isinstance(listed, list):
        raise invalid("'outputs' must be a list.", "outputs", "invalid_type")
    for output in listed:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise invalid("Each of 'outputs' must be an object with a name.", "outputs", "invalid_type")
        parameters = _parameters(output)
        if parameters.keys() - {"binary_data"}:
            raise invalid(f"Output parameters are not supported: {', '.join(parameters)}.", "outputs", "unsupported_parameter")
        outputs[output["name"]] = bool(parameters.get("binary_data", binary))
    number = head.get("id", "")
    return Asked(tuple(tensors), number if isinstance(number, str) else "", outputs, binary)


def _input(given: object, rest: bytes) -> tuple[Tensor, bytes]:
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise invalid("Each of 'inputs' must be an object with name, datatype and shape.", "inputs", "invalid_type")
    name, datatype, shape, parameters = given["name"], given.get("datatype"), given.get("shape"), _parameters(given)
    if not isinstance(datatype, str):
        raise invalid(f"Input '{name}' has no datatype.", name, "missing_required_parameter")
    if unknown := parameters.keys() - {"binary_data_size"}:
        raise invalid(f"Input parameters are not supported: {', '.join(unknown)}.", name, "unsupported_parameter")
    if "binary_data_size" not in parameters:
        return Tensor.of_numbers(name, datatype, shape, given.get("data")), rest
    size = parameters["binary_data_size"]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise invalid(f"Input '{name}' says {size!r:.40} bytes, {len(rest)} are there.", name, "invalid_value")
    return Tensor.make(name, datatype, checked_shape(name, shape), rest[:size]), rest[size:]


def _parameters(given: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = given.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise invalid("'parameters' must be an object.", "parameters", "invalid_type")
    return parameters


def infer_response(name: str, asked: Asked, made: Sequence[Tensor]) -> Response:
    """The answer, with binary data after the JSON where it was asked for."""
    told, tail = [], bytearray()
    for tensor in made:
        fields: dict[str, object] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if asked.outputs.get(tensor.name, asked.binary):
            fields["parameters"] = {"binary_data_size": len(tensor.data)}
            tail += tensor.data
        else:
            fields["data"] = tensor.numbers()
        told.append(fields)
    head = {"model_name": name, "model_version": VERSION, "outputs": told} | ({"id": asked.number} if asked.number else {})
    if not tail:
        return JSONResponse(head)
    raw = json.dumps(head, separators=(",", ":")).encode()
    return Response(raw + bytes(tail), headers={_HEADER_LENGTH: str(len(raw)), "Content-Type": "application/octet-stream"})


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
    return request.headers.get(_HEADER_LENGTH)


async def infer(gateway: Gateway, asked: Asked, client: str) -> Response:
    """POST /v2/models/{name}/infer."""
    made = await gateway.inference.run(asked.inputs, list(asked.outputs), client)
    return infer_response(gateway.settings.served_model, asked, made)
