"""KServe v2 over gRPC, for clients: the same model, inputs and errors as over HTTP."""

import array
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from splitinference_gateway import kserve_http
from splitinference_gateway.errors import invalid
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.kserve import ModelInferResponse, message_class
from splitinference_gateway.replies import told
from splitinference_gateway.tensors import ITEM_BYTES, Tensor, checked_shape

_SERVICE = "inference.GRPCInferenceService"
_CONTENTS = {
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


class KServeService:
    """The service on a port of its own. A call that the client cancels ends what runs for it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.port = 0

    async def start(self, address: str) -> None:
        """Serve on host:port; port 0 takes a free one, which `port` tells. OSError when it is taken."""
        settings = self._gateway.settings
        options = [
            ("grpc.max_receive_message_length", settings.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
        ]
        self._server = grpc.aio.server(options=options)
        methods = {
            "ServerLive": ("ServerLiveRequest", self._server_live),
            "ServerReady": ("ServerReadyRequest", self._server_ready),
            "ServerMetadata": ("ServerMetadataRequest", self._server_metadata),
            "ModelReady": ("ModelReadyRequest", self._model_ready),
            "ModelMetadata": ("ModelMetadataRequest", self._model_metadata),
            "ModelInfer": ("ModelInferRequest", self._infer),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(
                self._answered(method),
                request_deserializer=message_class(request).FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (request, method) in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.port = self._server.add_insecure_port(address)
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls; those under way may still take so long."""
        await self._server.stop(seconds)

    def _answered(self, method: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            status = 200
            try:
                if self._gateway.tracing is None or method != self._infer:
                    return await method(request, context)
                with self._gateway.tracing.request("grpc ModelInfer", _metadata(context)):
                    return await method(request, context)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                problem = told(error)
                status = problem.status
                await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), problem.message)
            finally:
                if method == self._infer:
                    self._gateway.ended(status)

        return answer

    async def _server_live(self, request: Any, context: Any) -> Any:
        return message_class("ServerLiveResponse")(live=self._gateway.healthy)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return message_class("ServerReadyResponse")(ready=self._gateway.ready)

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        await self._client(context)
        return message_class("ServerMetadataResponse")(**kserve_http.server_metadata())

    async def _model_ready(self, request: Any, context: Any) -> Any:
        await self._client(context)
        self._check(request.name, request.version)
        return message_class("ModelReadyResponse")(ready=self._gateway.ready)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        await self._client(context)
        self._check(request.name, request.version)
        return message_class("ModelMetadataResponse")(**kserve_http.model_metadata(request.name, self._gateway.inference.signature))

    async def _infer(self, request: Any, context: Any) -> Any:
        client = await self._client(context)
        self._check(request.model_name, request.model_version)
        made = await self._gateway.inference.run(_inputs(request), [output.name for output in request.outputs], client)
        response = ModelInferResponse(model_name=request.model_name, model_version=kserve_http.VERSION, id=request.id)
        for tensor in made:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(tensor.data)
        return response

    async def _client(self, context: Any) -> str:
        host = context.peer().rsplit(":", 1)[0]
        return await self._gateway.clients.identify(_metadata(context).get("authorization", ""), host)

    def _check(self, name: str, version: str) -> None:
        self._gateway.check_model(name)
        kserve_http.check_version(version)


def _metadata(context: Any) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _inputs(request: Any) -> list[Tensor]:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise invalid(f"{len(raw)} raw contents for {len(request.inputs)} inputs.", "inputs", "invalid_value")
    tensors = []
    for index, given in enumerate(request.inputs):
        content = raw[index] if raw else _packed(given)
        tensors.append(Tensor.make(given.name, given.datatype, checked_shape(given.name, list(given.shape)), content))
    return tensors


def _packed(given: Any) -> bytes:
    if given.datatype not in _CONTENTS:
        kinds = f"raw contents, or {', '.join(_CONTENTS)}" if given.datatype in ITEM_BYTES else ", ".join(ITEM_BYTES)
        raise invalid(f"Input '{given.name}' is {given.datatype!r:.40}; accepted are {kinds}.", given.name, "invalid_type")
    field, code = _CONTENTS[given.datatype]
    return array.array(code, getattr(given.contents, field)).tobytes()
