"""KServe v2 over gRPC, for clients: the same model, inputs and errors as over HTTP."""

import array
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import grpc.aio

from splitinference_gateway.access.admission import Admission
from splitinference_gateway.access.clients import client_address
from splitinference_gateway.answers.replies import told
from splitinference_gateway.endpoints import kserve_http
from splitinference_gateway.endpoints.kserve import ModelInferResponse, message_class
from splitinference_gateway.endpoints.kserve_message import read, read_infer
from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.settings import Settings
from splitinference_gateway.tensor_io.tensors import ITEM_BYTES, Tensor, checked_shape
from splitinference_protocol.addresses import any_address, joined

_SERVICE = "inference.GRPCInferenceService"
_CONTENTS = {
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
}
_CALLS = 512  # at once; more are refused by the library
_RECEIVING = 16  # messages that come in at once
_STREAMS = 64  # of one connection
_LEAST_BYTES_PER_SECOND = 64 << 10
_FOR_ALL = frozenset({"ServerLive", "ServerReady"})
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def options(settings: Settings) -> list[tuple[str, int]]:
    """Bounds of the gRPC library: what a peer may send, hold open and ask for before and after anybody looked at who it is."""
    return [
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),  # bounded by the settings' most_answer_bytes
        ("grpc.so_reuseport", 0),
        ("grpc.max_metadata_size", 16 << 10),
        ("grpc.absolute_max_metadata_size", 32 << 10),
        ("grpc.max_concurrent_streams", _STREAMS),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", int(settings.header_seconds * 1000)),
        # A stream's window stays small until its message is wanted: what is sent before the client is known waits at the client.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 64 << 10),
        ("grpc.max_connection_idle_ms", int(settings.keep_alive_seconds * 1000)),
        ("grpc.max_connection_age_ms", 3_600_000),
        ("grpc.max_connection_age_grace_ms", int(settings.request_seconds * 1000)),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", int(settings.stall_seconds * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
    ]


class KServeService:
    """The service on a port of its own. A call that the client cancels ends what runs for it.

    Each method is served as a stream of raw messages, which on the wire is the same. So the client is known from the call's metadata before
    its message is taken, and the message's bytes are counted before it is parsed.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._receiving = Admission(_RECEIVING, _CALLS, running_per_client=_RECEIVING // 4)
        self.port = 0

    async def start(self) -> None:
        """Serve on the settings' host and port; port 0 takes a free one, which `port` tells. OSError when it is taken."""
        settings = self._gateway.settings
        self._server = grpc.aio.server(options=options(settings), maximum_concurrent_rpcs=_CALLS)
        methods = {
            "ServerLive": ("ServerLiveRequest", self._server_live),
            "ServerReady": ("ServerReadyRequest", self._server_ready),
            "ServerMetadata": ("ServerMetadataRequest", self._server_metadata),
            "ModelReady": ("ModelReadyRequest", self._model_ready),
            "ModelMetadata": ("ModelMetadataRequest", self._model_metadata),
            "ModelInfer": ("ModelInferRequest", self._infer),
        }
        handlers: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(
                self._answered(name, message_class(request), method),
                request_deserializer=None,
                response_serializer=lambda message: message.SerializeToString(),
            )
            for name, (request, method) in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        address = joined(settings.host or any_address(), settings.kserve_port or 0)
        try:
            self.port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address} (SI_KSERVE_PORT): {error}") from error
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """Take no more calls; those under way may still take so long."""
        await self._server.stop(seconds)

    def _answered(
        self, name: str, kind: Any, method: Callable[[Any, str], Awaitable[Any]]
    ) -> Callable[[AsyncIterator[bytes], Any], Awaitable[None]]:
        infers = name == "ModelInfer"

        async def made(context: Any) -> Any:
            client = "" if name in _FOR_ALL else await self._client(context)
            with self._gateway.bodies.room(client) as held:
                raw = await self._message(context, client)
                held.grow(2 * len(raw))
                request = read_infer(raw) if infers else read(f"{name}Request", kind, raw)
                del raw
                if not infers:
                    return await method(request, client)
                if self._gateway.tracing is None:
                    return await method(request, client)
                with self._gateway.tracing.request("grpc ModelInfer", _metadata(context)):
                    return await method(request, client)

        async def answer(_: AsyncIterator[bytes], context: Any) -> None:
            status, refusal = 200, ""
            try:
                told_back = await made(context)
                async with asyncio.timeout(self._gateway.settings.stall_seconds + told_back.ByteSize() / _LEAST_BYTES_PER_SECOND):
                    await context.write(told_back)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                status, refusal = _refusal(error)
            finally:
                if infers:
                    self._gateway.ended(status)
            if status != 200:
                await context.abort(_CODES.get(status, grpc.StatusCode.INTERNAL), refusal)

        return answer

    async def _message(self, context: Any, client: str) -> bytes:
        """The call's one message, in time. Few come at once: how long one is, is not known before it is there.

        It is read from the context: the iterator of messages would keep it until the call has ended.
        """
        seconds = self._gateway.settings.body_seconds
        (place,) = self._receiving.enter(client, [0])
        try:
            async with asyncio.timeout(seconds):
                await place.wait()
                raw = await context.read()
        except TimeoutError:
            raise ApiError(408, f"The request's message did not arrive within {seconds:.0f} s.", code="timeout") from None
        finally:
            place.close()
        if raw is grpc.aio.EOF:
            raise invalid("The call has no message.")
        message: bytes = raw
        return message

    async def _server_live(self, request: Any, client: str) -> Any:
        return message_class("ServerLiveResponse")(live=self._gateway.healthy)

    async def _server_ready(self, request: Any, client: str) -> Any:
        return message_class("ServerReadyResponse")(ready=self._gateway.ready)

    async def _server_metadata(self, request: Any, client: str) -> Any:
        return message_class("ServerMetadataResponse")(**kserve_http.server_metadata())

    async def _model_ready(self, request: Any, client: str) -> Any:
        self._check(request.name, request.version)
        return message_class("ModelReadyResponse")(ready=self._gateway.ready)

    async def _model_metadata(self, request: Any, client: str) -> Any:
        self._check(request.name, request.version)
        return message_class("ModelMetadataResponse")(**kserve_http.model_metadata(request.name, self._gateway.inference.signature))

    async def _infer(self, request: Any, client: str) -> Any:
        self._check(request.model_name, request.model_version)
        adapter = self._gateway.adapter(request.model_name)
        made = await self._gateway.inference.run(_inputs(request), [output.name for output in request.outputs], client, adapter)
        response = ModelInferResponse(model_name=request.model_name, model_version=kserve_http.VERSION, id=request.id)
        for tensor in made:
            response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            response.raw_output_contents.append(tensor.data)
        return response

    async def _client(self, context: Any) -> str:
        return await self._gateway.clients.identify(_metadata(context).get("authorization", ""), peer_address(context.peer()))

    def _check(self, name: str, version: str) -> None:
        self._gateway.check_model(name)
        kserve_http.check_version(version)


def _refusal(error: Exception) -> tuple[int, str]:
    """Status and words. Nobody may keep the error until the client has read them: its frames hold the whole message."""
    problem = ApiError(408, "The answer was not read in time.") if isinstance(error, TimeoutError) else told(error)
    return problem.status, problem.message


def peer_address(peer: str) -> str:
    """Of what gRPC says: `ipv4:1.2.3.4:5`, or `ipv6:%5B::1%5D:5`."""
    host = unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    return client_address(host)


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
