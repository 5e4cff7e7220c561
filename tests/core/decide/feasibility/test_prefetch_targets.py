"""The likely target of a segment: the best node outside of the plan that could have it, by the cost model."""

from typing import Any

import pytest

from splitinference.core.decide.feasibility.prefetch_targets import likely_target, quickest
from splitinference.core.values.cluster import Link, LinkQuality, Network, Taint
from splitinference.core.values.problem import Constraints, Slo, TrustRule
from tests.core.planning import a_node, a_plan, a_problem, a_profile


def target(*nodes: Any, stage: int = 1, **more: Any) -> str | None:
    """Where that stage of a[0:2] b[2:4] would go."""
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250), *nodes, **more)
    plan = a_plan("a[0:2] b[2:4]", problem)
    return likely_target(plan.segments[stage], plan, problem)


def test_the_quickest_node_that_is_free_for_it():
    assert target(a_node("c", gflops=50), a_node("d", gflops=80)) == "d"


def test_what_others_use_counts():
    assert target(a_node("c", gflops=50), a_node("d", gflops=80, utilization=0.9)) == "c"


def test_the_links_to_the_others_count():
    slow = LinkQuality(bandwidth_bytes_per_s=1e4, rtt_ms=200)
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), links=(Link(source="a", target="d", quality=slow),))
    assert target(a_node("c", gflops=50), a_node("d", gflops=80), network=network) == "c"


@pytest.mark.parametrize(
    "unfit",
    [
        {"mib": 219},
        {"ready": False},
        {"taints": (Taint(key="gpu"),)},
        {"utilization": None},
    ],
)
def test_a_node_that_cannot_have_it_is_none(unfit: dict[str, Any]):
    assert target(a_node("c", **unfit)) is None


def test_rules_of_privacy_hold_for_weights_too():
    bounds = Constraints(trust=(TrustRule(start=3, end=4, labels={"trusted": "yes"}),))
    problem = a_problem(a_node("a"), a_node("b", labels={"trusted": "yes"}), a_node("c"), constraints=bounds)
    plan = a_plan("a[0:2] b[2:4]", problem)
    assert likely_target(plan.segments[1], plan, problem) is None
    assert likely_target(plan.segments[0], plan, problem) == "c"


def test_a_limit_that_the_target_would_not_keep_is_no_reason_to_have_none():
    assert target(a_node("c", gflops=1), slo=Slo(time_per_output_token_ms=10)) == "c"


def test_a_plan_that_has_every_node_has_no_target():
    assert target() is None


@pytest.mark.parametrize("apart", [{"processor": "gpu0"}, {"replicas": ("c",)}])
def test_a_stage_with_a_processor_or_with_replicas_has_no_target(apart: dict[str, Any]):
    problem = a_problem(a_node("a", mib=250), a_node("b", mib=250), a_node("c"), a_node("d"))
    plan = a_plan("a[0:2] b[2:4]", problem)
    assert likely_target(plan.segments[1].model_copy(update=apart), plan, problem) is None


def test_only_the_quickest_eight_nodes_are_compared_with_the_chain():
    """The ninth would be best with its link, and is not looked at: the estimate is bounded."""
    slow = LinkQuality(bandwidth_bytes_per_s=1e4, rtt_ms=200)
    names = "cdefghij"
    links = tuple(Link(source="a", target=name, quality=slow) for name in names)
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), links=links)
    quick = [a_node(name, gflops=80) for name in names]
    assert target(*quick[1:], a_node("z", gflops=50), network=network) == "z"
    assert target(*quick, a_node("z", gflops=50), network=network) in names


def test_the_layers_before_the_segment_decide_nothing():
    """Theirs are the heavy products, which c computes faster; d reads the weights of the segment faster. A rule on them is no matter."""
    profile = a_profile()
    heavy = tuple(layer.model_copy(update={"flops_per_token": 1e10}) for layer in profile.layers[:2])
    c = a_node("c", gflops=1000).model_copy(update={"memory_bandwidth_bytes_per_s": 1e10})
    d = a_node("d", gflops=100).model_copy(update={"memory_bandwidth_bytes_per_s": 1e11})
    rule = Constraints(trust=(TrustRule(start=0, end=2, labels={"trusted": "yes"}),))
    problem = a_problem(
        a_node("a", labels={"trusted": "yes"}),
        a_node("b"),
        c,
        d,
        profile=profile.model_copy(update={"layers": (*heavy, *profile.layers[2:])}),
        constraints=rule,
    )
    plan = a_plan("a[0:2] b[2:4]", problem)
    assert [node.name for node in quickest(plan.segments[1], plan, problem)] == ["d", "c"]
    free = problem.model_copy(update={"constraints": Constraints()})
    assert [node.name for node in quickest(plan.segments[0], plan, free)] == ["c", "d"]
