"""Sending to the next segment: its name checked and resolved, over a lasting wire or a gRPC channel, answers by callback."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import grpc
from tritonclient.grpc import service_pb2

from splitinference_segment.channels import Channels
from splitinference_segment.protocol import BAD_REQUEST, DEADLINE_EXCEEDED, NEXT_HOP_FAILED, Hop, SegmentError, answered, question
from splitinference_segment.settings import DNS_LABEL, Settings
from splitinference_segment.wire import WireError
from splitinference_segment.wire_client import Wire

GRACE_S = 0.25  # the next segment answers "deadline exceeded" itself, with its name; only its silence ends the call here
WIRE_AGAIN_S = 5.0  # a peer without a wire, such as one of an older image, is asked again so often
_log = logging.getLogger(__name__)

Reply = tuple[bytes, bytes]


def address_of(name: str, settings: Settings) -> str:
    """host:port of a peer's gRPC. SegmentError `bad_request` for a name that is not one of this resource's segments."""
    if not DNS_LABEL.fullmatch(name):
        raise SegmentError(BAD_REQUEST, f"{name!r:.100} is not a segment's name (one DNS label)")
    if not name.startswith(settings.peer_prefix):
        raise SegmentError(BAD_REQUEST, f"{name!r} does not start with {settings.peer_prefix!r}: not a segment of this resource")
    if settings.peer_addresses:
        if name not in settings.peer_addresses:
            raise SegmentError(BAD_REQUEST, f"{name!r} is not among the given peers")
        return settings.peer_addresses[name]
    return f"{name}{settings.peer_suffix}:8001"


class Hops:
    """Ways to peers, made when first needed and kept."""

    def __init__(self, settings: Settings) -> None:
        """Nothing is opened yet."""
        self._settings = settings
        self._channels = Channels(lambda name: address_of(name, settings))
        self._wires: dict[Hop, Wire] = {}
        self._tried: dict[Hop, float] = {}
        self._closed = False
        self._lock = threading.Lock()

    def step(self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Callable[[Reply | SegmentError], None]) -> None:
        """Send over the wire where there is one, else by gRPC, while a wire is looked for. `done` is called once, on another thread."""

        def came(reply: Reply | WireError | TimeoutError) -> None:
            match reply:
                case TimeoutError():
                    done(SegmentError(DEADLINE_EXCEEDED, f"{hop.segment} did not answer before the deadline"))
                case WireError():
                    done(SegmentError(NEXT_HOP_FAILED, f"{hop.segment}: {reply}"))
                case _:
                    done(reply)

        wire = self._wires.get(hop)
        if wire is not None:
            try:
                wire.send(meta, data, timeout_s + GRACE_S, came)
                return
            except WireError as problem:
                _log.info("the wire to %s is lost: %s", hop.segment, problem)
                self._drop(hop, wire)
        self._look_for_wire(hop)
        self.send(hop, meta, data, timeout_s, done)

    def send(self, hop: Hop, meta: bytes, data: bytes, timeout_s: float, done: Callable[[Reply | SegmentError], None]) -> None:
        """Send by gRPC without waiting; `done` is called once, on a thread of gRPC, with the answer or why there is none."""
        request = infer_request(hop.model, meta, data)
        self._channels.infer(hop.segment, request, timeout_s + GRACE_S, lambda call: done(self._reply(hop, call)))

    @property
    def wires(self) -> int:
        """Peers to which there is a wire."""
        with self._lock:
            return sum(wire.alive for wire in self._wires.values())

    def close(self) -> None:
        """Close every wire and channel; calls under way fail."""
        with self._lock:
            self._closed = True
            wires, self._wires = self._wires, {}
        self._channels.close()
        for wire in wires.values():
            wire.close()

    def _drop(self, hop: Hop, wire: Wire) -> None:
        with self._lock:
            if self._wires.get(hop) is wire:
                del self._wires[hop]
        wire.close()

    def _look_for_wire(self, hop: Hop) -> None:
        """Ask the peer, once in a while, where its wire is, and connect in the background."""
        now = time.monotonic()
        with self._lock:
            if self._closed or now - self._tried.get(hop, -WIRE_AGAIN_S) < WIRE_AGAIN_S:
                return
            self._tried = {peer: at for peer, at in self._tried.items() if now - at < WIRE_AGAIN_S} | {hop: now}
            self._wires = {peer: wire for peer, wire in self._wires.items() if wire.alive}
        host = address_of(hop.segment, self._settings).rpartition(":")[0]

        def told(reply: Reply | SegmentError) -> None:
            if not isinstance(reply, SegmentError):
                threading.Thread(target=self._connect, args=(hop, host, reply[0]), name="wire-connect", daemon=True).start()

        self.send(hop, question("wire"), b"", WIRE_AGAIN_S, told)

    def _connect(self, hop: Hop, host: str, told: bytes) -> None:
        try:
            wire = Wire(host, int(answered(told, hop.segment)["port"]), hop.model)
        except (WireError, SegmentError, KeyError, TypeError, ValueError) as problem:
            _log.info("no wire to %s: %s", hop.segment, problem)
            return
        with self._lock:
            closed = self._closed
            old = None if closed else self._wires.get(hop)
            if not closed:
                self._wires[hop] = wire
        for unused in (wire if closed else None, old):
            if unused is not None:
                unused.close()

    @staticmethod
    def _reply(hop: Hop, call: Any) -> Reply | SegmentError:
        if call.cancelled():
            return SegmentError(NEXT_HOP_FAILED, f"the call to {hop.segment} was cancelled")
        failure = call.exception()
        if failure is not None:
            code, details = failure.code(), failure.details()
            if code == grpc.StatusCode.DEADLINE_EXCEEDED:
                return SegmentError(DEADLINE_EXCEEDED, f"{hop.segment} did not answer before the deadline")
            return SegmentError(NEXT_HOP_FAILED, f"{hop.segment}: {code.name}: {details:.200}")
        try:
            return outputs_of(call.result())
        except KeyError as missing:
            return SegmentError(NEXT_HOP_FAILED, f"{hop.segment} answered without {missing}")


def infer_request(model: str, meta: bytes, data: bytes) -> service_pb2.ModelInferRequest:
    """A KServe request with META and DATA as raw bytes; DATA is never empty."""
    contents = {"META": meta, "DATA": data or b"\0"}
    inputs = [
        service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype="UINT8", shape=[len(content)])
        for name, content in contents.items()
    ]
    return service_pb2.ModelInferRequest(model_name=model, inputs=inputs, raw_input_contents=list(contents.values()))


def outputs_of(response: service_pb2.ModelInferResponse) -> Reply:
    """META and DATA of an answer. KeyError when one is not there."""
    contents: Mapping[str, bytes] = {
        output.name: response.raw_output_contents[i] for i, output in enumerate(response.outputs) if i < len(response.raw_output_contents)
    }
    return contents["META"], contents["DATA"]
