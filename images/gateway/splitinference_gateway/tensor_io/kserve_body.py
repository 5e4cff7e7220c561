"""The body of KServe's infer: JSON, with the bytes of tensors behind it where the client sends them so (Triton's binary extension)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from splitinference_gateway.client_requests.bodies import read_json
from splitinference_gateway.errors import invalid
from splitinference_gateway.tensor_io.tensors import Tensor, checked_shape

HEADER_LENGTH = "Inference-Header-Content-Length"
_MOST_TENSORS = 64


@dataclass(frozen=True)
class Asked:
    """One infer request: the inputs, which outputs, and which of those as binary data."""

    inputs: tuple[Tensor, ...]
    number: str = ""
    outputs: Mapping[str, bool] = field(default_factory=dict)  # name → binary; empty: all
    binary: bool = False

    def as_frame(self) -> tuple[dict[str, Any], bytes]:
        """For another process."""
        told = [[tensor.name, tensor.datatype, list(tensor.shape), len(tensor.data)] for tensor in self.inputs]
        fields = {"inputs": told, "number": self.number, "outputs": dict(self.outputs), "binary": self.binary}
        return fields, b"".join(tensor.data for tensor in self.inputs)

    @classmethod
    def of_frame(cls, fields: Mapping[str, Any], content: bytes) -> "Asked":
        """The other way."""
        inputs, start = [], 0
        for name, datatype, shape, size in fields["inputs"]:
            inputs.append(Tensor.make(name, datatype, shape, content[start : start + size]))
            start += size
        return cls(tuple(inputs), fields["number"], fields["outputs"], fields["binary"])


def parse_infer(body: bytes, header_length: str | None) -> Asked:
    """Read the body of an infer request.

    Raises:
        ApiError: 400, saying what is wrong.
    """
    if header_length is not None and not (header_length.isdigit() and int(header_length) <= len(body)):
        raise invalid(f"{HEADER_LENGTH} is {header_length!r:.40}, the body has {len(body)} bytes.")
    length = len(body) if header_length is None else int(header_length)
    head = read_json(body[:length])
    if not isinstance(head.get("inputs"), list):
        raise invalid("The request must be a JSON object with a list of inputs.", "inputs", "missing_required_parameter")
    if len(head["inputs"]) > _MOST_TENSORS:
        raise invalid(f"{len(head['inputs'])} inputs are too many, at most {_MOST_TENSORS}.", "inputs", "invalid_value")
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
    if len(listed) > _MOST_TENSORS:
        raise invalid(f"{len(listed)} outputs are too many, at most {_MOST_TENSORS}.", "outputs", "invalid_value")
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
