"""The instances of the planner's benchmark: models and clusters of stated families, the same on every machine.

Device figures are nominal ones (peak FLOP/s of the serving dtype, memory bandwidth, memory) of the named devices; links as the
papers have them whose testbeds they are.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from splitinference.core.values.cluster import Link, LinkQuality, Network, Node, Snapshot
from splitinference.core.values.problem import Goal, Objective, Problem, Workload
from splitinference.core.values.profile import Layer, LayerKind, Profile

GIB = 2**30
MBIT = 125_000.0


@dataclass(frozen=True)
class Device:
    """A kind of node: FLOP/s, memory bandwidth in bytes/s, memory in bytes, watts at work, cost per hour."""

    name: str
    flops_per_s: float
    bandwidth: float
    memory: int
    watts: float
    cost: float


A100 = Device("a100", 312e12, 1555e9, 40 * GIB, 400, 3.7)
L4 = Device("l4", 121e12, 300e9, 24 * GIB, 72, 0.8)
T4 = Device("t4", 65e12, 320e9, 16 * GIB, 70, 0.5)
V100 = Device("v100", 112e12, 900e9, 16 * GIB, 300, 2.5)
ORIN_AGX = Device("orin-agx", 3.33e12, 204.8e9, 32 * GIB, 60, 0.1)
ORIN_NX = Device("orin-nx", 1.88e12, 102.4e9, 16 * GIB, 25, 0.05)
RTX3090 = Device("rtx3090", 36e12, 936e9, 24 * GIB, 350, 0.4)


@dataclass(frozen=True)
class Instance:
    """One instance: its name and the problem for the latency goal; other goals take the same."""

    name: str
    problem: Problem

    def with_goal(self, goal: Goal) -> Problem:
        """The same problem for another goal; a weight of moves and further goals stay."""
        weight = self.problem.objective.move_weight
        if self.problem.objective.goal is goal:
            return self.problem
        return self.problem.model_copy(update={"objective": Objective(goal=goal, move_weight=weight)})


def transformer(blocks: int, hidden: int, *, bytes_per_weight: int = 2, vocabulary: int = 32_000, name: str = "") -> Profile:
    """A decoder of `blocks` equal blocks (12 hidden² weights each), with an embedding and a head that are unlike them."""
    table, block = vocabulary * hidden, 12 * hidden * hidden
    boundary = hidden * bytes_per_weight
    layers = [
        Layer(index=0, name="embedding", kind=LayerKind.EMBEDDING, weight_bytes=table * bytes_per_weight, flops_per_token=hidden,
              read_bytes_per_token=boundary, boundary_bytes_per_token=boundary)
    ]  # fmt: skip
    for number in range(blocks):
        layers.append(
            Layer(index=number + 1, name=f"block {number}", weight_bytes=block * bytes_per_weight, flops_per_token=2.0 * block,
                  flops_per_token_and_context=4.0 * hidden, kv_bytes_per_token=hidden // 4 * bytes_per_weight,
                  boundary_bytes_per_token=boundary)
        )  # fmt: skip
    layers.append(
        Layer(index=blocks + 1, name="norm and head", kind=LayerKind.HEAD, weight_bytes=table * bytes_per_weight,
              flops_per_token=2.0 * table, boundary_bytes_per_token=8)
    )  # fmt: skip
    label = name or f"{blocks} blocks of {hidden}"
    return Profile(model=label, digest=f"bench:{label}:{bytes_per_weight}", dtype="float16", layers=tuple(layers), runtime_bytes=GIB // 2)


def _nodes(kinds: list[tuple[Device, int]], zones: tuple[str, ...] = ("",), busy: random.Random | None = None) -> tuple[Node, ...]:
    result = []
    for device, count in kinds:
        for number in range(count):
            result.append(
                Node(
                    name=f"{device.name}-{number}",
                    zone=zones[number * len(zones) // count],
                    memory_free_bytes=device.memory,
                    flops_per_s=device.flops_per_s,
                    memory_bandwidth_bytes_per_s=device.bandwidth,
                    utilization=round(busy.uniform(0.0, 0.6), 3) if busy else 0.0,
                    idle_watts=device.watts / 5,
                    busy_watts=device.watts,
                    cost_per_hour=device.cost,
                )
            )
    return tuple(result)


def _problem(profile: Profile, nodes: tuple[Node, ...], network: Network) -> Problem:
    return Problem(
        profile=profile,
        snapshot=Snapshot(nodes=nodes, network=network),
        workload=Workload(prompt_tokens=512, output_tokens=128, max_context_tokens=2048, max_concurrent_sequences=4),
    )


def _gigabit(mbit: float = 1000.0, rtt_ms: float = 0.5) -> Network:
    return Network(default=LinkQuality(bandwidth_bytes_per_s=mbit * MBIT, rtt_ms=rtt_ms))


def large(layers: int = 80) -> Profile:
    """A model of the size of 70 billion weights in `layers` layers, first and last unlike the rest."""
    return transformer(layers - 2, 8192, name=f"70B in {layers} layers")


def homogeneous(count: int, layers: int = 80) -> Instance:
    """Equal nodes on equal links."""
    return Instance(f"homogeneous-{count}", _problem(large(layers), _nodes([(L4, count)]), _gigabit()))


def three_classes(count: int, layers: int = 80) -> Instance:
    """An eighth A100, the rest L4 and T4, on 1 Gb/s."""
    kinds = [(A100, max(1, count // 8)), (L4, count * 3 // 8), (T4, count - max(1, count // 8) - count * 3 // 8)]
    return Instance(f"three-classes-{count}", _problem(large(layers), _nodes(kinds), _gigabit()))


def three_classes_busy(count: int, layers: int = 80) -> Instance:
    """Three classes, every node with a load of its own: no two are equal."""
    kinds = [(A100, max(1, count // 8)), (L4, count * 3 // 8), (T4, count - max(1, count // 8) - count * 3 // 8)]
    return Instance(f"three-classes-busy-{count}", _problem(large(layers), _nodes(kinds, busy=random.Random(count)), _gigabit()))


def edge_testbed(size: str = "7B") -> Instance:
    """EdgeShard's: 12 Orin AGX, 2 Orin NX, 1 RTX 3090 behind a link of 1 Mb/s; 50 Mb/s between the rest; fp32."""
    blocks, hidden = {"7B": (32, 4096), "13B": (40, 5120), "70B": (80, 8192)}[size]
    nodes = _nodes([(ORIN_AGX, 12), (ORIN_NX, 2), (RTX3090, 1)])
    nodes = tuple(n.model_copy(update={"zone": "cloud" if n.name.startswith("rtx") else "edge"}) for n in nodes)
    thin, wide = LinkQuality(bandwidth_bytes_per_s=1 * MBIT, rtt_ms=20.0), LinkQuality(bandwidth_bytes_per_s=50 * MBIT, rtt_ms=2.0)
    zones = (Link(source="edge", target="edge", quality=wide), Link(source="edge", target="cloud", quality=thin),
             Link(source="cloud", target="edge", quality=thin))  # fmt: skip
    network = Network(default=wide, zones=zones, ingress="orin-agx-0")
    profile = transformer(blocks, hidden, bytes_per_weight=4, name=f"Llama 2 {size} fp32")
    problem = _problem(profile, nodes, network)
    workload = Workload(prompt_tokens=32, output_tokens=96, max_context_tokens=128, max_concurrent_sequences=1)
    return Instance(f"edge-testbed-{size}", problem.model_copy(update={"workload": workload}))


def two_regions(count: int, layers: int = 80) -> Instance:
    """Half the nodes in each region; 10 Gb/s inside, 100 Mb/s with 50 ms between."""
    nodes = _nodes([(A100, max(2, count // 8)), (L4, count - max(2, count // 8))], zones=("east", "west"))
    inside, between = (
        LinkQuality(bandwidth_bytes_per_s=10_000 * MBIT, rtt_ms=0.3),
        LinkQuality(bandwidth_bytes_per_s=100 * MBIT, rtt_ms=50.0),
    )
    zones = tuple(Link(source=a, target=b, quality=inside if a == b else between) for a in ("east", "west") for b in ("east", "west"))
    return Instance(f"two-regions-{count}", _problem(large(layers), nodes, Network(default=inside, zones=zones)))


def one_fast(count: int, layers: int = 80) -> Instance:
    """One A100 and many T4 that are busy to different degrees."""
    nodes = (*_nodes([(A100, 1)]), *_nodes([(T4, count - 1)], busy=random.Random(count)))
    return Instance(f"one-fast-{count}", _problem(large(layers), nodes, _gigabit()))


def all_unequal(count: int, layers: int = 80) -> Instance:
    """Every node with a load, and every link with a bandwidth and RTT of its own."""
    source = random.Random(1000 + count)
    kinds = [(A100, max(1, count // 8)), (L4, count * 3 // 8), (T4, count - max(1, count // 8) - count * 3 // 8)]
    nodes = _nodes(kinds, busy=source)
    links = tuple(
        Link(source=a.name, target=b.name, quality=LinkQuality(bandwidth_bytes_per_s=source.uniform(100, 10_000) * MBIT,
                                                              rtt_ms=source.uniform(0.1, 5.0)))
        for a in nodes for b in nodes if a is not b
    ) if count <= 128 else ()  # fmt: skip
    return Instance(f"all-unequal-{count}", _problem(large(layers), nodes, Network(default=_gigabit().default, links=links)))


def _mixed(count: int, zones: tuple[str, ...] = ("",), seed: int = 0) -> tuple[Node, ...]:
    """An eighth A100, the rest L4 and T4, every node with a load of its own; each zone has some of each kind."""
    kinds = [(A100, max(1, count // 8)), (L4, count * 3 // 8), (T4, count - max(1, count // 8) - count * 3 // 8)]
    return _nodes(kinds, zones=zones, busy=random.Random(seed or count))


def regions(count: int, layers: int = 128, *, number: int = 8, profile: Profile | None = None) -> Instance:
    """Nodes in regions: 10 Gb/s inside; between two of them 100 to 1000 Mb/s and 5 to 80 ms, each way with figures of its own."""
    source = random.Random(2000 + count)
    names = tuple(f"region-{k}" for k in range(number))
    inside = LinkQuality(bandwidth_bytes_per_s=10_000 * MBIT, rtt_ms=0.3)
    zones = tuple(
        Link(source=a, target=b, quality=inside if a == b else LinkQuality(bandwidth_bytes_per_s=source.uniform(100, 1_000) * MBIT,
                                                                          rtt_ms=source.uniform(5.0, 80.0)))
        for a in names for b in names
    )  # fmt: skip
    problem = _problem(profile or large(layers), _mixed(count, names), Network(default=_gigabit().default, zones=zones))
    return Instance(f"regions-{count}", problem)


def few_layers_a_node(count: int = 60, layers: int = 128) -> Instance:
    """Regions, and a model of 6 GB a layer: a node holds two to six of them, so that most nodes are needed."""
    # 12 hidden² weights of two bytes are 6 GB at 16,000.
    return Instance(f"regions-{count} 6 GB layers", regions(count, number=4, profile=transformer(layers - 2, 16_000)).problem)


def star(count: int, layers: int = 128) -> Instance:
    """One hub; each other node reaches it over a link of its own, and the others over the hub: slower, with both delays."""
    source = random.Random(3000 + count)
    nodes = _mixed(count)
    hub, links = nodes[0].name, list[Link]()
    for node in nodes[1:]:
        quality = LinkQuality(bandwidth_bytes_per_s=source.uniform(500, 10_000) * MBIT, rtt_ms=source.uniform(0.2, 5.0))
        links += [Link(source=hub, target=node.name, quality=quality), Link(source=node.name, target=hub, quality=quality)]
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=500 * MBIT, rtt_ms=5.0), links=tuple(links), ingress=hub)
    return Instance(f"star-{count}", _problem(large(layers), nodes, network))


def line(count: int, layers: int = 128) -> Instance:
    """Nodes in a line, kinds mixed: 10 Gb/s to the next one, 100 Mb/s and 20 ms to all others."""
    nodes = list(_mixed(count))
    random.Random(4000 + count).shuffle(nodes)
    near = LinkQuality(bandwidth_bytes_per_s=10_000 * MBIT, rtt_ms=0.2)
    pairs = [(a, b) for a, b in pairwise(nodes)]
    links = tuple(Link(source=a.name, target=b.name, quality=near) for one, other in pairs for a, b in ((one, other), (other, one)))
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=100 * MBIT, rtt_ms=20.0), links=links)
    return Instance(f"line-{count}", _problem(large(layers), tuple(nodes), network))


def thousands(count: int = 5_000, layers: int = 128) -> Instance:
    """So many nodes, no two of them equal in load, memory or speed."""
    source = random.Random(count)
    nodes = tuple(
        node.model_copy(update={"flops_per_s": node.flops_per_s * source.uniform(0.5, 1.0),
                                "memory_bandwidth_bytes_per_s": node.memory_bandwidth_bytes_per_s * source.uniform(0.5, 1.0),
                                "memory_free_bytes": int(node.memory_free_bytes * source.uniform(0.4, 1.0))})
        for node in _mixed(count)
    )  # fmt: skip
    return Instance(f"thousands-{count}", _problem(large(layers), nodes, _gigabit()))


def helix(count: int) -> Instance:
    """Helix' clusters: 24 nodes (4 A100, 8 L4, 12 T4 on 1 Gb/s) or 42 nodes of more kinds."""
    kinds = [(A100, 4), (L4, 8), (T4, 12)]
    if count == 42:
        kinds = [(A100, 4), (V100, 6), (L4, 10), (T4, 16), (RTX3090, 6)]
    return Instance(f"helix-{count}", _problem(large(), _nodes(kinds), _gigabit()))


def helix_regions(count: int) -> Instance:
    """Helix' clusters spread over three regions with thin links between them: 10 Gb/s inside, 100 Mb/s and 50 ms between."""
    names = ("one", "two", "three")
    nodes = tuple(node.model_copy(update={"zone": names[i % 3]}) for i, node in enumerate(helix(count).problem.snapshot.nodes))
    inside, between = (
        LinkQuality(bandwidth_bytes_per_s=10_000 * MBIT, rtt_ms=0.3),
        LinkQuality(bandwidth_bytes_per_s=100 * MBIT, rtt_ms=50.0),
    )
    zones = tuple(Link(source=a, target=b, quality=inside if a == b else between) for a in names for b in names)
    return Instance(f"helix-{count} in regions", _problem(large(), nodes, Network(default=inside, zones=zones)))


def many_models(models: int, count: int) -> tuple[Problem, ...]:
    """Models of three sizes, turn by turn, on the same busy nodes; each with a few requests."""
    base = three_classes_busy(count, 32).problem
    profiles = [transformer(14, 2048, name="1B"), transformer(30, 2560, name="3B"), transformer(30, 4096, name="7B")]
    load = base.workload.model_copy(update={"requests_per_s": 0.05})
    return tuple(base.model_copy(update={"profile": profiles[i % 3], "workload": load}) for i in range(models))


def shaped(instance: Instance, *, pipelines: int = 1, max_stage_nodes: int = 1) -> Instance:
    """The instance with several pipelines on nodes of their own, or with stages that may be on several nodes."""
    constraints = instance.problem.constraints.model_copy(update={"pipelines": pipelines, "max_stage_nodes": max_stage_nodes})
    words = f"{pipelines} pipelines" if pipelines > 1 else f"stages on up to {max_stage_nodes} nodes"
    layers = len(instance.problem.profile.layers)
    return Instance(f"{instance.name} ({layers} layers, {words})", instance.problem.model_copy(update={"constraints": constraints}))
