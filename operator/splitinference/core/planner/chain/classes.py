"""Places grouped into classes of equals, and links into kinds of equal quality."""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from splitinference.core.cost.site import Site, sites
from splitinference.core.values.cluster import LinkQuality, Network, Node
from splitinference.core.values.problem import Problem

Kind = tuple[LinkQuality, bool]
"""A link's quality, and whether a hop may go over it."""


def link_qualities(problem: Problem, usable: tuple[Node, ...]) -> tuple[list[Kind], NDArray[np.int32]]:
    """The distinct kinds of links, and which one leads from node to node; the last row and column is where requests enter."""
    network = problem.snapshot.network
    found = _Kinds()
    names = [node.name for node in usable] + [network.ingress]
    kinds = _between_zones(problem, names, found)
    position: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        position[name].append(number)
    for link in network.links:
        for i in position.get(link.source, ()):
            for j in position.get(link.target, ()):
                kinds[i, j] = found.of(link.quality)
    for way in network.closed:
        for i in position.get(way.source, ()):
            for j in position.get(way.target, ()):
                kinds[i, j] = found.closed(kinds[i, j])
    if not network.ingress and (network.only_listed or network.closed_zones):
        # A place outside is always reached.
        for row in (kinds[-1, :], kinds[:, -1]):
            row[:] = [found.of(found.known[k][0]) for k in row]
    for name, numbers in position.items():
        kinds[np.ix_(numbers, numbers)] = found.of(network.local if name else network.default)
    _narrowed(network, problem, names, found, kinds)
    return found.known, kinds


class _Kinds:
    """The kinds of links met so far, by number."""

    def __init__(self) -> None:
        self.known: list[Kind] = []
        self._number: dict[Kind, int] = {}

    def of(self, quality: LinkQuality, *, is_open: bool = True) -> int:
        """The number of a kind, a new one where it is new."""
        kind = (quality, is_open)
        if kind not in self._number:
            self._number[kind] = len(self.known)
            self.known.append(kind)
        return self._number[kind]

    def closed(self, number: int) -> int:
        """The number of the same kind, closed."""
        return self.of(self.known[number][0], is_open=False)


def _between_zones(problem: Problem, names: list[str], found: _Kinds) -> NDArray[np.int32]:
    """Kinds from node to node, as far as zones and the default say."""
    network = problem.snapshot.network
    zones = {zone: number for number, zone in enumerate(dict.fromkeys([*(n.zone for n in problem.snapshot.nodes), ""]))}
    between = np.full((len(zones), len(zones)), found.of(network.default, is_open=not network.only_listed), dtype=np.int32)
    for link in network.zones:
        if link.source in zones and link.target in zones:
            between[zones[link.source], zones[link.target]] = found.of(link.quality)
    for way in network.closed_zones:
        if way.source in zones and way.target in zones:
            here, there = zones[way.source], zones[way.target]
            between[here, there] = found.closed(between[here, there])
    home = {node.name: zones[node.zone] for node in problem.snapshot.nodes}
    zone = np.array([home.get(name, zones[""]) for name in names], dtype=np.int64)
    return between[np.ix_(zone, zone)]


def _narrowed(network: Network, problem: Problem, names: list[str], found: _Kinds, kinds: NDArray[np.int32]) -> None:
    """No way is wider than the shared links on it."""
    homes = {node.name: node.zone for node in problem.snapshot.nodes}
    for shared in network.shared:
        behind = np.array([bool(name) and shared.holds(name, homes.get(name, "")) for name in names])
        crossing = behind[:, None] != behind[None, :]
        for number, (quality, is_open) in enumerate(list(found.known)):
            if quality.bandwidth_bytes_per_s > shared.bandwidth_bytes_per_s:
                narrow = LinkQuality(bandwidth_bytes_per_s=shared.bandwidth_bytes_per_s, rtt_ms=quality.rtt_ms)
                kinds[crossing & (kinds == number)] = found.of(narrow, is_open=is_open)


def equal_places(problem: Problem, usable: tuple[Node, ...], kinds: NDArray[np.int32]) -> list[list[tuple[int, Site]]]:
    """Places grouped into classes; every member is (index of its node among the usable, place)."""
    bounds = problem.constraints
    special = {pin.node for pin in bounds.pins} | {name for _, _, name in problem.serving}
    classes: list[list[tuple[int, Site]]] = []
    profiles = [tuple(np.bincount(row).tolist()) for row in kinds]
    of_signature: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, node in enumerate(usable):
        trust = tuple(all(node.labels.get(k) == v for k, v in rule.labels.items()) for rule in bounds.trust)
        for site in sites(node):
            processor = (site.processor if site.node.layer_times else "", node.name) if node.processors else ("", "")
            signature = (*speed(site), site.memory_bytes, node.stage_overhead_ms,
                         node.utilization or 0.0, node.layer_times, node.idle_watts, node.busy_watts, node.cost_per_hour, trust,
                         node.name if node.name in special else "", processor, profiles[number])  # fmt: skip
            for c in of_signature[signature]:
                if _equal_links(kinds, classes[c][0][0], number):
                    classes[c].append((number, site))
                    break
            else:
                of_signature[signature].append(len(classes))
                classes.append([(number, site)])
    return classes


def speed(site: Site) -> tuple[object, ...]:
    """All of a place that the time of a layer depends on, but its measured layer times."""
    reached = site.efficiency
    unlike = (reached.prefill, reached.decode, reached.dequantized_per_s)
    return (site.flops_per_s, site.bandwidth_bytes_per_s, site.free_share, unlike, site.calibration, site.prefill_calibration)


def _equal_links(kinds: NDArray[np.int32], i: int, j: int) -> bool:
    """Whether nobody can tell nodes i and j apart by their links."""
    if i == j:
        return True
    if kinds[i, j] != kinds[j, i] or kinds[i, i] != kinds[j, j]:
        return False
    rest = np.ones(kinds.shape[0], dtype=bool)
    rest[[i, j]] = False
    return bool((kinds[i, rest] == kinds[j, rest]).all() and (kinds[rest, i] == kinds[rest, j]).all())
