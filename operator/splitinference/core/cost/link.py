"""What a hop between two places costs: forward with activations, back with the answer, over the quality of the link."""

from dataclasses import dataclass

from splitinference.core.values.cluster import Link, LinkQuality, Network, Node, SharedLink
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import LinkEncoding

MESSAGE_BYTES = 1024
"""Bytes of a message besides the tensor: META as JSON, gRPC and TCP headers. The answer is one message without a tensor."""
TOKEN_BYTES = 8
"""Bytes of one token id on the way from the gateway to the first stage."""


@dataclass(frozen=True)
class Hop:
    """One hop: milliseconds until the answer is back, for the prompt and for one decode step, and for how long a step takes the link."""

    prefill_ms: float
    decode_ms: float
    occupancy_ms: float


class Links:
    """The qualities of a network's links, looked up by node: node to node, then zone to zone, then the default."""

    def __init__(self, network: Network, nodes: tuple[Node, ...]) -> None:
        self._network = network
        self._zone = {node.name: node.zone for node in nodes}
        # Of two equal entries the last one wins, as in a mapping.
        self._links: dict[tuple[str, str], LinkQuality] = _table(network.links)
        self._zones: dict[tuple[str, str], LinkQuality] = _table(network.zones)
        self._closed = {(way.source, way.target) for way in network.closed}
        self._closed_zones = {(way.source, way.target) for way in network.closed_zones}

    def quality(self, source: str, target: str) -> LinkQuality:
        """Quality from `source` to `target`; an empty name is a place outside, reached by the default.

        No wider than the shared links on the way.
        """
        if source == target:
            return self._network.local if source else self._network.default
        found = self._links.get((source, target))
        if found is None:
            found = self._zones.get(self._zones_of(source, target))
        found = found or self._network.default
        widths = [link.bandwidth_bytes_per_s for link, _ in self.shared(source, target)]
        if widths and min(widths) < found.bandwidth_bytes_per_s:
            return LinkQuality(bandwidth_bytes_per_s=min(widths), rtt_ms=found.rtt_ms)
        return found

    def is_open(self, source: str, target: str) -> bool:
        """Whether a hop may go from `source` to `target`; a place outside is always reached."""
        if source == target or not source or not target:
            return True
        if (source, target) in self._closed:
            return False
        if (source, target) in self._links:
            return True
        zones = self._zones_of(source, target)
        if zones in self._closed_zones:
            return False
        return zones in self._zones or not self._network.only_listed

    def shared(self, source: str, target: str) -> list[tuple[SharedLink, str]]:
        """The shared links that a hop passes, and in which direction: out of those behind it, or in."""
        if not self._network.shared or source == target:
            return []
        passed = []
        for link in self._network.shared:
            behind = [bool(name) and link.holds(name, self._zone.get(name, "")) for name in (source, target)]
            if behind[0] != behind[1]:
                passed.append((link, "out" if behind[0] else "in"))
        return passed

    def _zones_of(self, source: str, target: str) -> tuple[str, str]:
        return self._zone.get(source, ""), self._zone.get(target, "")


def _table(links: tuple[Link, ...]) -> dict[tuple[str, str], LinkQuality]:
    return {(link.source, link.target): link.quality for link in links}


def bytes_per_token(problem: Problem, boundary: int, encoding: LinkEncoding | None = None) -> int:
    """Bytes of one token's tensor as it crosses `boundary` (0: from the gateway to the first stage).

    `encoding`: of this link, where the plan has one of its own; else the problem's, and plain where that is to be chosen.
    """
    return TOKEN_BYTES if boundary == 0 else problem.profile.layers[boundary - 1].sent_bytes_per_token(encoding or problem.link_encoding)


def hop(problem: Problem, boundary: int, there: LinkQuality, back: LinkQuality, encoding: LinkEncoding | None = None) -> Hop:
    """The hop over `boundary`: half the RTT and the bytes over the bandwidth, in each direction. `encoding`: as for `bytes_per_token`."""
    size, workload = bytes_per_token(problem, boundary, encoding), problem.workload
    turn = (there.rtt_ms + back.rtt_ms) / 2.0
    answer = 1e3 * MESSAGE_BYTES / back.bandwidth_bytes_per_s
    prompt = 1e3 * (size * workload.prompt_tokens + MESSAGE_BYTES) / there.bandwidth_bytes_per_s
    step = 1e3 * (size * workload.batch + MESSAGE_BYTES) / there.bandwidth_bytes_per_s
    share = workload.batch / workload.output_tokens
    return Hop(turn + prompt + answer, turn + step + answer, max(step + prompt * share, answer * (1.0 + share)))
