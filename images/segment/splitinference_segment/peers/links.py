"""The link to each next segment, as the hops over it show it: round trip from small messages, bandwidth from big ones.

A hop's link time is the time until the answer less the time that the next segment held the request (its `held_ms`: all between receipt
and answer, later stages included). What is left is the network in both directions and the servers' own handling.

- round trip = the shortest link time of small messages;
- bandwidth = the highest of bytes / (link time - round trip) over big messages.

Both are of the last messages only. The best of several is taken because all that disturbs a measurement (a busy processor, a queue) makes
it longer: a link that is slow now is slow for each of them. The best of very few is no better than they are (the first messages to a new
segment are slow on any link), so few say nothing. A bandwidth is only known where the bytes took long enough to be seen.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

SMALL_BYTES = 8 << 10  # decode steps: what they carry takes no time worth measuring
BIG_BYTES = 16 << 10  # prefill chunks
WINDOW_S = 30.0  # older messages say nothing about now
LEAST_SMALL, LEAST_BIG = 8, 4  # with fewer in the window nothing is said
MOST_SMALL, MOST_BIG = 256, 32  # bounds memory, and with many messages the window is shorter
SEEN_S = 1e-3  # bytes that took less than this longer than a small message are lost in what disturbs
FORGET_S = 600.0  # a peer without hops for so long is no longer told of
UNKNOWN = math.nan

Measure = tuple[str, float, Mapping[str, str]]
"""Name, value, labels."""


@dataclass
class _Peer:
    target: str
    seen_s: float = 0.0
    small: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=MOST_SMALL))  # when, link time; seconds
    big: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=MOST_BIG))  # when, link time, bytes
    rtt_s: float | None = None
    mbps: float | None = None
    rtt_at: float = 0.0
    mbps_at: float = 0.0


class Links:
    """What is known of the links from one node (`source`) to the next segments. May be used from any thread."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source, self._clock = source, clock
        self._peers: dict[str, _Peer] = {}
        self._lock = threading.Lock()

    def hop(self, to: str, target: str, sent_bytes: int, link_s: float) -> None:
        """A message of `sent_bytes` to segment `to` on node `target` took its link `link_s` seconds, there and back."""
        now = self._clock()
        with self._lock:
            peer = self._peers.get(to)
            if peer is None or peer.target != target:
                peer = self._peers[to] = _Peer(target)
            peer.seen_s = now
            if sent_bytes <= SMALL_BYTES:
                peer.small.append((now, max(0.0, link_s)))
            elif sent_bytes >= BIG_BYTES:
                peer.big.append((now, max(0.0, link_s), sent_bytes))

    def measures(self) -> Iterator[Measure]:
        """Gauges of every peer, with the age of each value in seconds; NaN is not known."""
        now = self._clock()
        with self._lock:
            self._peers = {to: peer for to, peer in self._peers.items() if now - peer.seen_s <= FORGET_S}
            peers = [(to, _measured(peer, now)) for to, peer in self._peers.items()]
        for to, peer in peers:
            labels = {"to": to, "source": self._source, "target": peer.target}
            if peer.rtt_s is not None:
                yield "link_rtt_ms", peer.rtt_s * 1e3, labels
                yield "link_rtt_age_seconds", now - peer.rtt_at, labels
            if peer.mbps is not None:
                yield "link_mbps", peer.mbps, labels
                yield "link_mbps_age_seconds", now - peer.mbps_at, labels


def _measured(peer: _Peer, now: float) -> _Peer:
    """The same peer with its values as of now; while too few messages are recent the last values stay and grow old."""
    while peer.small and now - peer.small[0][0] > WINDOW_S:
        peer.small.popleft()
    while peer.big and now - peer.big[0][0] > WINDOW_S:
        peer.big.popleft()
    if len(peer.small) >= LEAST_SMALL:
        peer.rtt_s, peer.rtt_at = min(link_s for _, link_s in peer.small), peer.small[-1][0]
    if len(peer.big) >= LEAST_BIG and peer.rtt_s is not None:
        best_s, best_bytes = min(((link_s - peer.rtt_s) / size, size) for _, link_s, size in peer.big)
        seen = best_s * best_bytes >= SEEN_S
        peer.mbps, peer.mbps_at = (8e-6 / best_s if seen else UNKNOWN), peer.big[-1][0]
    return peer
