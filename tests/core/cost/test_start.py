"""What a move takes: starts are work of one core, and as slow as what others leave of a node's cores."""

import pytest

from splitinference.core.cost.start import Start, starting_seconds, usable_cores
from splitinference.core.decide.base.compare import move_seconds, moving, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Policy
from splitinference.core.decide.decide import decide
from splitinference.core.values.result import Limits
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs, text_of

COST = Start(clock_s=3.0, work_s=5.0, load_bytes_per_s=100 * 2**20)
"""One layer of the model, 100 MiB, takes a core one second to load."""


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"cores": 16}, 1.0),
        ({"cores": 16, "utilization": 0.9}, 1.0),
        ({"cores": 4, "utilization": 0.9}, 0.4),
        ({"cores": 1, "utilization": 0.5}, 0.5),
        ({"cores": 1, "utilization": None}, 1.0),
        ({"cores": 0.5}, 0.5),
        ({"cores": 0.5, "utilization": 0.99}, 0.1),
        ({"cores": 0.06, "utilization": 0.99}, 0.06),
        ({"utilization": 0.8}, 0.2),
    ],
)
def test_a_start_uses_what_others_leave_at_most_one_core_and_never_less_than_it_requests(node, expected):
    assert usable_cores(a_node("a", **node)) == pytest.approx(expected)


def test_half_a_core_takes_twice_the_work_but_not_twice_the_rest():
    idle, half = a_node("a", cores=1), a_node("a", cores=1, utilization=0.5)
    assert COST.server_s(idle) == 8.0
    assert COST.server_s(half) == 13.0
    assert COST.load_s(half, 200 * 2**20) == 2 * COST.load_s(idle, 200 * 2**20) == 4.0


def test_servers_start_together_and_weights_load_one_after_the_other():
    problem = a_problem(a_node("a", cores=1), a_node("b", cores=1, utilization=0.5), a_node("c", cores=1))
    plan = a_plan("a[0:1] b[1:2] c[2:4]")
    assert starting_seconds(plan, problem, COST) == (13.0 + 1.0 + 2.0 + 2.0, "b")
    served = problem.model_copy(update={"serving": ((1, 2, "b"), (0, 2, "a"))})
    assert starting_seconds(plan, served, COST) == (8.0 + 1.0 + 2.0, "c")
    nothing = problem.model_copy(update={"serving": tuple((s.start, s.end, s.node) for s in plan.segments)})
    assert starting_seconds(plan, nothing, COST) == (0.0, "")


POLICY = Policy(start_seconds=3.0, start_core_seconds=5.0, load_bytes_per_s=100 * 2**20)


def test_the_price_of_a_move_and_its_words_are_those_of_the_node_that_starts():
    problem = a_problem(a_node("a"), a_node("b", utilization=0.9, cores=2), a_node("c", cores=2, utilization=0.95))
    problem = problem.model_copy(update={"serving": ((0, 2, "a"), (2, 4, "b"))})
    plan, current = a_plan("a[0:2] c[2:4]", problem), a_plan("a[0:2] b[2:4]", problem)
    assert move_seconds(plan, problem, POLICY) == pytest.approx(3 + 5 / 0.1 + 2 / 0.1)
    assert moving(plan, problem, POLICY) == "moving 200 MiB takes about 73 s (c has only 0.1 free cores for it)"
    idle = problem.model_copy(
        update={"snapshot": problem.snapshot.model_copy(update={"nodes": (*problem.snapshot.nodes[:2], a_node("c", cores=2))})}
    )
    assert moving(plan, idle, POLICY) == "moving 200 MiB takes about 10 s"
    assert net_gain(current, plan, idle, POLICY) > 0.5 > net_gain(current, plan, problem, POLICY)


@pytest.mark.parametrize(("cores", "moves"), [(16.0, True), (0.5, False)])
def test_a_gain_that_would_pay_on_a_node_with_cores_does_not_pay_where_the_start_takes_minutes(cores, moves):
    """c is half again as quick as b for what others leave; but on half a core, nine tenths of it taken, a start takes over a minute."""
    nodes = (a_node("a", mib=250), a_node("b", mib=250, utilization=0.9, cores=16), a_node("c", mib=250, utilization=0.85, cores=cores))
    problem = a_problem(*nodes)
    plan, memory = a_plan("a[0:2] b[2:4]", problem), Memory(reviewed=START)
    policy = POLICY.model_copy(update={"min_gain": 0.2})
    for second in range(100, 200, 20):
        found, memory = decide(inputs(problem, plan, second), policy, memory, Exhaustive(), Limits(seconds=1))
        if isinstance(found, Adopt) or found.reason is Kept.GAIN_TOO_SMALL:
            break
    if moves:
        assert isinstance(found, Adopt)
        assert text_of(found.plan) == "a[0:2] c[2:4]"
    else:
        assert isinstance(found, Keep)
        assert found.reason is Kept.GAIN_TOO_SMALL
        assert "c has only 0.1 free cores for it" in found.message
