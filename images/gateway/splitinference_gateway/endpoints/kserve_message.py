"""The bytes of a gRPC infer request, looked at before protobuf makes objects of them: two bytes can become a hundred."""

from typing import Any

from google.protobuf.message import DecodeError

from splitinference_gateway.endpoints.kserve import ModelInferRequest
from splitinference_gateway.errors import ApiError, invalid

_MOST_FIELDS = 256


def read_infer(raw: bytes) -> Any:
    """The request.

    Raises:
        ApiError: 400, it is none, or has too many parts.
    """
    _check_fields(raw)
    return read("ModelInferRequest", ModelInferRequest, raw)


def read(name: str, kind: Any, raw: bytes) -> Any:
    """A message of a kind. ApiError 400 for what is none."""
    try:
        return kind.FromString(raw)
    except (DecodeError, ValueError) as error:
        raise invalid(f"The message is no {name}.") from error


def _check_fields(raw: bytes) -> None:
    at, fields = 0, 0
    while at < len(raw):
        fields += 1
        if fields > _MOST_FIELDS:
            raise invalid(f"The request has more than {_MOST_FIELDS} inputs, outputs and contents.", "inputs", "invalid_value")
        tag, at = _varint(raw, at)
        match tag & 7:
            case 0:
                _, at = _varint(raw, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(raw, at)
                at += size
            case 5:
                at += 4
            case _:
                raise _broken()
    if at != len(raw):
        raise _broken()


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _broken()


def _broken() -> ApiError:
    return invalid("The message is no ModelInferRequest.")
