"""The part of KServe v2's gRPC messages that clients need, declared here so that the image carries no client library.

Only what is sent and read is declared: protobuf keeps or skips the rest. Field numbers are those of the public protocol.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_Field: Any = descriptor_pb2.FieldDescriptorProto
_STRING, _BYTES, _INT64, _MESSAGE = _Field.TYPE_STRING, _Field.TYPE_BYTES, _Field.TYPE_INT64, _Field.TYPE_MESSAGE
_INT32, _FP32, _FP64, _BOOL = _Field.TYPE_INT32, _Field.TYPE_FLOAT, _Field.TYPE_DOUBLE, _Field.TYPE_BOOL


def _declare() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="step.proto", package="inference", syntax="proto3")

    def message(name: str, fields: list[tuple[str, int, int, bool, str]], within: Any = None) -> Any:
        made = within.nested_type.add() if within else file.message_type.add()
        made.name = name
        for field_name, number, kind, repeated, type_name in fields:
            made.field.add(
                name=field_name,
                number=number,
                type=kind,
                label=_Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL,
                type_name=type_name or None,
            )
        return made

    tensor = [("name", 1, _STRING, False, ""), ("datatype", 2, _STRING, False, ""), ("shape", 3, _INT64, True, "")]
    request = message(
        "ModelInferRequest",
        [
            ("model_name", 1, _STRING, False, ""),
            ("model_version", 2, _STRING, False, ""),
            ("id", 3, _STRING, False, ""),
            ("inputs", 5, _MESSAGE, True, ".inference.ModelInferRequest.InferInputTensor"),
            ("outputs", 6, _MESSAGE, True, ".inference.ModelInferRequest.InferRequestedOutputTensor"),
            ("raw_input_contents", 7, _BYTES, True, ""),
        ],
    )
    contents = [
        ("int_contents", 2, _INT32, True, ""),
        ("int64_contents", 3, _INT64, True, ""),
        ("fp32_contents", 6, _FP32, True, ""),
        ("fp64_contents", 7, _FP64, True, ""),
    ]
    message("InferTensorContents", contents)
    message("InferInputTensor", [*tensor, ("contents", 5, _MESSAGE, False, ".inference.InferTensorContents")], within=request)
    message("InferRequestedOutputTensor", [("name", 1, _STRING, False, "")], within=request)
    response = message(
        "ModelInferResponse",
        [
            ("model_name", 1, _STRING, False, ""),
            ("model_version", 2, _STRING, False, ""),
            ("id", 3, _STRING, False, ""),
            ("outputs", 5, _MESSAGE, True, ".inference.ModelInferResponse.InferOutputTensor"),
            ("raw_output_contents", 6, _BYTES, True, ""),
        ],
    )
    message("InferOutputTensor", tensor, within=response)
    _declare_metadata(message)
    pool = descriptor_pool.DescriptorPool()  # our own: a client library in the same process may register the full protocol
    pool.Add(file)
    return pool


def _declare_metadata(message: Any) -> None:
    model = [("name", 1, _STRING, False, ""), ("version", 2, _STRING, False, "")]
    for empty in ("ServerLiveRequest", "ServerReadyRequest", "ServerMetadataRequest"):
        message(empty, [])
    for asks in ("ModelReadyRequest", "ModelMetadataRequest"):
        message(asks, model)
    message("ServerLiveResponse", [("live", 1, _BOOL, False, "")])
    for ready in ("ServerReadyResponse", "ModelReadyResponse"):
        message(ready, [("ready", 1, _BOOL, False, "")])
    message("ServerMetadataResponse", [*model, ("extensions", 3, _STRING, True, "")])
    kind = ".inference.ModelMetadataResponse.TensorMetadata"
    told = [("versions", 2, _STRING, True, ""), ("platform", 3, _STRING, False, "")]
    tensors = [("inputs", 4, _MESSAGE, True, kind), ("outputs", 5, _MESSAGE, True, kind)]
    metadata = message("ModelMetadataResponse", [("name", 1, _STRING, False, ""), *told, *tensors])
    fields = [("name", 1, _STRING, False, ""), ("datatype", 2, _STRING, False, ""), ("shape", 3, _INT64, True, "")]
    message("TensorMetadata", fields, within=metadata)


_POOL = _declare()


def message_class(name: str) -> Any:
    """The class of one of the messages declared above."""
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest: Any = message_class("ModelInferRequest")
ModelInferResponse: Any = message_class("ModelInferResponse")
