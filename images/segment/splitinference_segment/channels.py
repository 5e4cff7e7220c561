"""gRPC channels to peers: one for each name, opened when first needed, and opened anew when it fails or was not used for a while.

A channel whose name could not be resolved for a while asks DNS ever more rarely, up to two minutes, and tries the old address meanwhile. A
segment that went and came back has another address under the same name; so what could not be reached is looked up afresh.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

RENEW_S = 1.0  # a channel that was opened less than this ago is not opened anew: it has just asked DNS
IDLE_S = 10.0  # one that was not used for so long is: what it knows may be out of date, and to ask costs a millisecond

# Triton is started with a server side that allows these pings (see serve.py).
CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # so long may one try to connect take: on a fraction of a core, which may have to wait 100 ms for its turn, less never succeeds
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),  # so that a new channel knows nothing of the old one's failures
)


@dataclass(eq=False)
class _Peer:
    channel: grpc.Channel
    stub: service_pb2_grpc.GRPCInferenceServiceStub
    opened: float
    used: float
    calls: int = 0  # under way
    left: bool = False  # for another channel: closed after its last call


class Channels:
    """Threads may share it. `address_of`: host:port by name; asked whenever a channel is opened."""

    def __init__(self, address_of: Callable[[str], str], *, renew_s: float = RENEW_S, idle_s: float = IDLE_S) -> None:
        """Nothing is opened yet."""
        self._address_of, self._renew_s, self._idle_s = address_of, renew_s, idle_s
        self._peers: dict[str, _Peer] = {}
        self._lock = threading.Lock()

    def infer(self, name: str, request: service_pb2.ModelInferRequest, timeout_s: float, done: Callable[[Any], None]) -> None:
        """Call the peer without waiting; `done` gets the ended call, on a thread of gRPC. What `address_of` raises is raised here."""
        now = time.monotonic()
        with self._lock:
            old = self._peers.get(name)
            idle = old is not None and not old.calls and now - old.used > self._idle_s
            peer = self._opened(name, now) if old is None or idle else old
            peer.calls += 1
            peer.used = now
        if old is not None and old is not peer:
            old.channel.close()
        future = peer.stub.ModelInfer.future(request, timeout=timeout_s)
        future.add_done_callback(lambda call: self._ended(name, peer, call, done))

    def _opened(self, name: str, now: float) -> _Peer:
        channel = grpc.insecure_channel(self._address_of(name), options=CHANNEL_OPTIONS)
        peer = self._peers[name] = _Peer(channel, service_pb2_grpc.GRPCInferenceServiceStub(channel), now, now)
        return peer

    def close(self) -> None:
        """Close all; calls under way fail."""
        with self._lock:
            peers, self._peers = self._peers, {}
        for peer in peers.values():
            peer.channel.close()

    def _ended(self, name: str, peer: _Peer, call: Any, done: Callable[[Any], None]) -> None:
        unreachable = call.code() is grpc.StatusCode.UNAVAILABLE and time.monotonic() - peer.opened >= self._renew_s
        with self._lock:
            peer.calls -= 1
            if unreachable and self._peers.get(name) is peer:
                del self._peers[name]
                peer.left = True
            unused = peer.left and not peer.calls
        done(call)
        if unused:
            peer.channel.close()
