"""A plan that a person approved: what the approval replaces, and what is checked all the same."""

from datetime import timedelta

import pytest

from splitinference.core.decide.base.compare import Change, net_gain
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Memory, Mode, Policy, Watch
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import always_reachable
from splitinference.core.decide.decide import decide
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem, TrustRule
from splitinference.core.values.result import Limits
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs

POLICY = Policy(
    mode=Mode.ADVISORY, window=timedelta(seconds=20), cooldown=timedelta(hours=1), review=timedelta(hours=1), load_bytes_per_s=1e9
)
SMALL = {"mib": 250}
BUSY = a_problem(a_node("a", **SMALL), a_node("b", utilization=0.93, **SMALL), a_node("c", **SMALL))
PLAN = a_plan("a[0:2] b[2:4]", a_problem(a_node("a", **SMALL), a_node("b", **SMALL)))
MOVED = a_plan("a[0:2] c[2:4]")
AT = 100.0


def approved(
    plan: Plan = MOVED, problem: Problem = BUSY, policy: Policy = POLICY, dry_run=always_reachable, **more
) -> tuple[Adopt | Keep, Memory]:
    """The decision a moment after the last move, when nothing has held for a window yet."""
    given = {"moves": (START + timedelta(seconds=AT - 1),), "approved": plan, **more}
    return decide(inputs(problem, PLAN, AT, **given), policy, Memory(reviewed=START), Exhaustive(), Limits(seconds=1), dry_run=dry_run)


def void(**given) -> str:
    """The message of the decision that the approval is void."""
    found, memory = approved(**given)
    assert isinstance(found, Keep)
    assert found.reason is Kept.APPROVAL_VOID
    assert found.trigger is not None
    assert (found.trigger.reason, found.trigger.mandatory) == (Reason.APPROVED, False)
    assert found.trigger.message == "the proposed plan was approved"
    assert memory.reviewed == START, "nothing was decided, so nothing is forgotten"
    return found.message


def test_it_is_adopted_at_once_within_the_cooldown_and_with_what_the_cost_model_says_now():
    found, memory = approved()
    assert isinstance(found, Adopt)
    assert (found.change, found.reason, found.mandatory) == (Change.MIGRATION, Reason.APPROVED, False)
    assert found.plan.revision == MOVED.revision
    assert found.plan.prediction is not None
    assert found.plan.value == pytest.approx(526.3, abs=0.05)
    assert found.before_ms == pytest.approx(33.6, abs=0.05)
    assert found.message == (
        "the proposed plan was approved; predicted 33.6 ms → 7.1 ms per token, latency 3954.0 → 526.3 ms, "
        "moving 200 MiB takes about 8 s: net gain 85%"
    )
    assert memory.reviewed == START + timedelta(seconds=AT)
    assert memory.watches == {}


@pytest.mark.parametrize("mode", [Mode.AUTO, Mode.FROZEN])
def test_an_approval_counts_in_mode_advisory_alone(mode):
    found, _ = approved(policy=POLICY.model_copy(update={"mode": mode}))
    assert found == Keep(reason=Kept.STEADY)


def test_an_approval_waits_for_the_end_of_a_transition():
    found, _ = approved(in_transition=True)
    assert found == Keep(reason=Kept.STEADY)


def test_a_mandatory_reason_comes_first():
    found, _ = approved(quarantined={"b": "3 failures"})
    assert isinstance(found, Adopt)
    assert found.reason is Reason.SEGMENT_FAILED


def test_another_version_of_the_model_makes_it_void():
    other = a_plan("a[0:2] c[2:4]", digest="fedcba9876543210")
    assert void(plan=other) == "the proposed plan was approved; it is for another version of the model"


def test_a_rule_that_it_breaks_now_makes_it_void():
    rule = Constraints(trust=(TrustRule(start=2, end=3, labels={"trusted": "true"}),))
    nodes = (node.model_copy(update={"labels": {"trusted": "true"} if node.name == "b" else {}}) for node in BUSY.snapshot.nodes)
    said = void(problem=a_problem(*nodes, constraints=rule))
    assert said.startswith("the proposed plan was approved; it is no longer valid: ")
    assert "need trusted=true" in said


@pytest.mark.parametrize("avoided", [{"quarantined": {"c": "3 failures"}}, {"pressured": {"c": "it runs out"}}])
def test_a_node_that_is_avoided_now_makes_it_void(avoided):
    assert "it is no longer valid: " in void(**avoided)


def test_two_faults_are_both_named():
    said = void(plan=a_plan("d[0:2] e[2:4]"))
    assert said.startswith("the proposed plan was approved; it is no longer valid: ")
    assert "; " in said.removeprefix("the proposed plan was approved; it is no longer valid: ")


FREE = POLICY.model_copy(update={"start_seconds": 0.0, "start_core_seconds": 0.0, "load_bytes_per_s": 1e18, "min_gain": 1.0})
"""A move costs nothing, and the least gain is more than any."""


@pytest.mark.parametrize(("gflops", "adopted"), [(99.99, False), (100.01, True)])
def test_it_must_still_be_better_than_staying_but_by_no_least_gain(gflops, adopted):
    near = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", gflops=gflops, **SMALL))
    net = net_gain(PLAN, MOVED, inputs(near, PLAN).problem, FREE)
    assert (net > 0) is adopted
    assert abs(net) < 1e-3
    found, _ = approved(problem=near, policy=FREE)
    assert isinstance(found, Adopt) is adopted


def test_a_plan_just_as_good_as_the_present_one_is_void():
    assert net_gain(PLAN, PLAN, inputs(BUSY, PLAN).problem, FREE) == 0.0
    assert void(plan=PLAN, policy=FREE).endswith("net gain 0%; it is no longer better than the present plan")


def test_a_plan_that_is_no_better_is_void():
    idle = a_problem(a_node("a", **SMALL), a_node("b", **SMALL), a_node("c", **SMALL))
    assert void(problem=idle).endswith("; it is no longer better than the present plan")


def test_a_plan_that_cannot_be_reached_is_void():
    said = void(dry_run=lambda plan: Blocked(why="c has no room"))
    assert said.endswith(": net gain 85%; it cannot be reached: c has no room")


def test_what_was_watched_is_forgotten_after_it_and_kept_where_it_is_void():
    watches = {Reason.BETTER_PLAN: Watch(since=START, confirmations=1, last=START)}
    given = inputs(BUSY, PLAN, 1, approved=MOVED)
    adopted, memory = decide(given, POLICY, Memory(reviewed=START, watches=watches), Exhaustive(), Limits(seconds=1))
    assert isinstance(adopted, Adopt)
    assert memory.watches == {}
    kept, memory = decide(
        given, POLICY, Memory(reviewed=START, watches=watches), Exhaustive(), Limits(seconds=1), dry_run=lambda plan: Blocked(why="x")
    )
    assert isinstance(kept, Keep)
    assert Reason.BETTER_PLAN in memory.watches
