"""How META and DATA get to a segment and back: over the wire where it may be and is there, else by KServe v2 over gRPC."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from splitinference_gateway.kserve import INFER_METHOD, ModelInferResponse, infer_request, output
from splitinference_gateway.route import Hop
from splitinference_gateway.wire import Wire, WireError, fits

_GRACE_SECONDS = 0.25  # a segment that notices the deadline itself can still say which stage was late
_CLOSE_SECONDS = 300.0
_WIRE_AGAIN_SECONDS = 5.0  # a segment without a wire, such as one of an older image, is asked again so often
_NOTHING = b"\0"
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    # A segment that comes back is to be found at once: the defaults wait up to two minutes, and 30 s for a new look at DNS.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    # A node that is lost sends no word. Segments allow such pings; see the flags with which they start their servers.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 4000),
    ("grpc.http2.max_pings_without_data", 0),
)
_log = logging.getLogger(__name__)

Reply = tuple[bytes, bytes]
"""META and DATA."""


@dataclass(eq=False)
class NoAnswerError(Exception):
    """A segment did not answer; `in_time`: it failed before its time was over."""

    message: str
    in_time: bool


@dataclass
class Connections:
    """One channel per segment, and a wire to those whose steps begin here. `address_of`: host:port of a segment's gRPC, by name."""

    address_of: Callable[[str], str]
    _channels: dict[str, tuple[grpc.aio.Channel, Any]] = field(default_factory=dict)
    _wires: dict[str, Wire] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    @property
    def wires(self) -> int:
        """Segments to which there is a wire."""
        return sum(wire.alive for wire in self._wires.values())

    async def send(self, hop: Hop, meta: bytes, data: bytes, seconds: float) -> Reply:
        """Over the wire where there is one, else by gRPC, while a wire is looked for.

        Raises:
            NoAnswerError: the segment cannot be reached, is lost meanwhile, or does not answer within `seconds`.
        """
        wire = self._wires.get(hop.segment)
        if wire is None or not wire.alive or wire.model != hop.model:
            self._look_for_wire(hop)
        elif fits(meta, data):
            try:
                return await wire.exchange(meta, data, seconds + _GRACE_SECONDS)
            except TimeoutError as late:
                raise _late(seconds) from late
            except WireError as lost:
                raise NoAnswerError(str(lost), in_time=True) from lost
        return await self.send_by_grpc(hop, meta, data, seconds)

    async def send_by_grpc(self, hop: Hop, meta: bytes, data: bytes, seconds: float) -> Reply:
        """Through Triton.

        Raises:
            NoAnswerError: as above; or what came is no answer of a segment.
        """
        try:
            response = await self._method(hop.segment)(infer_request(hop.model, meta, data), timeout=seconds + _GRACE_SECONDS)
            return output(response, "META"), output(response, "DATA")
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise _late(seconds) from error
            raise NoAnswerError(f"{error.code().name}: {error.details()}", in_time=True) from error
        except (grpc.aio.UsageError, KeyError, ValueError) as error:
            raise NoAnswerError(f"not an answer of a segment: {error!r}", in_time=True) from error

    def reconnect(self, segment: str) -> None:
        """Forget the connections to a segment: after a silent loss the old ones would be retried for minutes."""
        if segment in self._wires:
            self._wires.pop(segment).leave()  # what is under way may still be answered
        if segment in self._channels:
            channel, _ = self._channels.pop(segment)
            self._background(channel.close(grace=_CLOSE_SECONDS))

    def retain(self, segments: set[str]) -> None:
        """Close the connections to all segments but these."""
        for segment in {*self._channels, *self._wires} - segments:
            self.reconnect(segment)
        self._asked = {segment: at for segment, at in self._asked.items() if segment in segments}

    async def close(self) -> None:
        """Close all at once; what is under way fails."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for wire in self._wires.values():
            wire.close()
        closing = [channel.close(grace=None) for channel, _ in self._channels.values()]
        self._wires.clear()
        self._channels.clear()
        await asyncio.gather(*closing, return_exceptions=True)

    def _look_for_wire(self, hop: Hop) -> None:
        """Ask the segment, once in a while, where its wire is, and connect in the background. Only its port is taken from what it says."""
        now = time.monotonic()
        if now - self._asked.get(hop.segment, -_WIRE_AGAIN_SECONDS) >= _WIRE_AGAIN_SECONDS:
            self._asked[hop.segment] = now
            self._background(self._connect(hop))

    async def _connect(self, hop: Hop) -> None:
        asks = json.dumps({"v": 1, "op": "wire", "deadline_ms": int(_WIRE_AGAIN_SECONDS * 1000)}).encode()
        try:
            meta, _ = await self.send_by_grpc(hop, asks, _NOTHING, _WIRE_AGAIN_SECONDS)
            port = int(json.loads(meta)["port"])
            if not 0 < port < 1 << 16:
                raise ValueError(f"port {port}")
            wire = await Wire.connect(self.address_of(hop.segment).rpartition(":")[0], port, hop.model)
        except (NoAnswerError, WireError, KeyError, TypeError, ValueError) as problem:
            _log.info("no wire to %s: %s", hop.segment, problem)
            return
        old = self._wires.get(hop.segment)
        self._wires[hop.segment] = wire
        if old is not None:
            old.leave()

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _method(self, segment: str) -> Any:
        if segment not in self._channels:
            channel = grpc.aio.insecure_channel(self.address_of(segment), options=_CHANNEL_OPTIONS)
            method: Any = channel.unary_unary(
                INFER_METHOD,
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=ModelInferResponse.FromString,
            )
            self._channels[segment] = (channel, method)
        return self._channels[segment][1]


def _late(seconds: float) -> NoAnswerError:
    return NoAnswerError(f"no answer within {seconds:.1f} s", in_time=False)
