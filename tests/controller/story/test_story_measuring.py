"""A first plan waits for nodes to be measured, not for ever; and says what the figures of its nodes are."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from splitinference.controller.cluster_state.figures.node_benchmark import Record, Records, pending, system_of, with_figures
from splitinference.controller.ports import Listing, Manifest
from splitinference.controller.reconcile.reconcile import Reconciler
from tests.controller.stories import small
from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node

FIGURES = ("splitinference.dev/compute-gflops", "splitinference.dev/memory-bandwidth-gbps")


@dataclass
class Benchmarks:
    """What was measured so far."""

    world: World
    records: dict[str, Record] = field(default_factory=dict)

    def measure(self, name: str, gflops: float = 400.0) -> None:
        node = self.world.nodes[name]
        rates: Any = {"float32": {"gflops": gflops, "gbps": 1e4}}
        when = datetime(2026, 1, 1, tzinfo=UTC)
        self.records[node["metadata"]["uid"]] = Record(name=name, system=system_of(node), time=when, share=1, rates=rates)

    def shown(self, nodes: Listing) -> Listing:
        known: Records = self.records
        return Listing((with_figures(node, known) for node in nodes), (*nodes.generation, len(known)))

    def pending(self, nodes: Sequence[Manifest]) -> tuple[str, ...]:
        return pending(nodes, self.records, self.world.settings)


def starting(nodes: dict[str, dict[str, Any]] | None = None) -> tuple[World, Operator, Benchmarks]:
    world = World(nodes or small("a", "b", "c"))
    for name, node in world.nodes.items():
        node["metadata"]["uid"] = f"uid-{name}"
    world.add(a_body(created=world.now))
    operator, benchmarks = Operator(world), Benchmarks(world)
    operator.reconciler = Reconciler(replace(world.ports(), benchmarks=benchmarks), world.settings, operator.solver)
    return world, operator, benchmarks


def test_the_first_plan_is_made_from_what_was_measured():
    world, operator, benchmarks = starting()
    operator.run(3)
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("Unknown", "MeasuringNodes")
    assert planned["message"] == "nodes are measured before the first plan is made: a, b, c"
    assert "plan" not in world.status()
    for name, gflops in (("a", 10.0), ("b", 500.0), ("c", 500.0)):
        benchmarks.measure(name, gflops)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    assert {segment["node"] for segment in world.status()["plan"]["segments"]} == {"b", "c"}
    assert world.condition("Planned")["message"].endswith("figures of its nodes are measured")


def test_a_node_that_cannot_be_measured_holds_the_plan_up_for_a_while_only():
    world, operator, benchmarks = starting()
    benchmarks.measure("a")
    operator.run(int(world.settings.measure_wait_seconds // 5))
    assert "plan" not in world.status()
    operator.run(8)
    assert world.condition("Ready")["status"] == "True"
    assert "assumed" in world.condition("Planned")["message"]


def test_nobody_waits_for_nodes_that_are_labelled():
    labels = dict.fromkeys(FIGURES, "400")
    world, operator, _ = starting({name: a_node(name, mib=310, **labels) for name in "abc"})
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Planned")["message"].endswith("figures of its nodes are labelled")


def test_nobody_waits_for_nodes_that_the_resource_may_not_use():
    nodes = {name: a_node(name, mib=310, pool="mine") for name in "abc"} | {"d": a_node("d", pool="others")}
    world, operator, benchmarks = starting(nodes)
    body = world.objects["SplitInference", NAMESPACE, "chat"]
    body["spec"]["placement"] = {"nodeSelector": {"pool": "mine"}}
    for name in "abc":
        benchmarks.measure(name)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True"


def test_a_resource_that_serves_does_not_wait_for_a_node_that_joins():
    world, operator, benchmarks = starting()
    for name in "abc":
        benchmarks.measure(name)
    operator.run(6)
    before = world.placement()
    world.nodes["d"] = a_node("d", mib=310)
    world.nodes["d"]["metadata"]["uid"] = "uid-d"
    operator.run(3)
    assert world.placement() == before
    assert world.condition("Planned")["status"] == "True"
