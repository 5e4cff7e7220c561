"""After a person rejected the best plan: the next one that pays without the nodes that it would begin to use, or nothing."""

import pytest

from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Mode
from splitinference.core.values.plan import Plan
from tests.core.decide.test_decide import PLAN, POLICY, SMALL, after, busy_b
from tests.core.planning import Exhaustive, a_node, a_plan, a_problem, text_of

ADVISORY = POLICY.model_copy(update={"mode": Mode.ADVISORY})
SLOWER = a_node("d", gflops=60, **SMALL)
"""Idle: not as good as c, and far better than the busy b."""


def offered(problem, *rejected: Plan, policy=ADVISORY, solve=None) -> Keep:
    found = after(problem, PLAN, policy, steps=5, solve=solve, rejected=frozenset(plan.revision for plan in rejected))
    assert isinstance(found, Keep)
    return found


def plan_of(found: Keep) -> Plan:
    assert found.proposal is not None
    return found.proposal


def test_another_node_is_proposed_instead_of_the_rejected_one():
    now = busy_b(0.93, SLOWER)
    best = plan_of(offered(now))
    assert text_of(best) == "a[0:2] c[2:4]"
    found = offered(now, best)
    assert found.reason is Kept.ADVISED
    assert text_of(plan_of(found)) == "a[0:2] d[2:4]"
    assert "without c, as a plan with it was rejected; mode Advisory: the plan would be a[0:2] d[2:4]" in found.message


def test_the_second_may_be_rejected_too():
    now = busy_b(0.93, SLOWER, a_node("e", gflops=40, **SMALL))
    first = plan_of(offered(now))
    second = plan_of(offered(now, first))
    found = offered(now, first, second)
    assert text_of(plan_of(found)) == "a[0:2] e[2:4]"
    assert "without c, d, as a plan with them was rejected" in found.message


def test_where_nothing_else_pays_nothing_is_proposed_and_the_rejected_plan_is_named():
    now = busy_b(0.93)
    best = plan_of(offered(now))
    found = offered(now, best)
    assert (found.reason, found.proposal) == (Kept.REJECTED, None)
    assert found.message.endswith("a[0:2] c[2:4] was rejected, so it is not proposed again")


def test_a_plan_that_only_cuts_anew_names_no_node_to_do_without():
    now = a_problem(a_node("a", mib=350), a_node("b", mib=350, utilization=0.9))
    plan = a_plan("a[0:2] b[2:4]", now)

    def look(*rejected: str) -> Keep:
        found = after(now, plan, ADVISORY, steps=5, rejected=frozenset(rejected))
        assert isinstance(found, Keep)
        return found

    best = plan_of(look())
    found = look(best.revision)
    assert (found.reason, found.proposal) == (Kept.REJECTED, None)


def test_solves_are_bounded_however_many_plans_were_rejected():
    """After three rejected plans no fourth one is looked for, though g would pay."""
    now = busy_b(0.93, *(a_node(name, gflops=50, **SMALL) for name in "defg"))
    rejected = [a_plan(f"a[0:2] {name}[2:4]", now) for name in "cdef"]
    few, many = Exhaustive(), Exhaustive()
    assert offered(now, solve=few).reason is Kept.ADVISED
    assert offered(now, *rejected, solve=many).reason is Kept.REJECTED
    assert len(few.asked) < len(many.asked) <= 4 * len(few.asked)


@pytest.mark.parametrize("mode", [Mode.AUTO])
def test_what_was_rejected_counts_in_mode_advisory_alone(mode: Mode):
    now = busy_b(0.93, SLOWER)
    best = plan_of(offered(now))
    found = after(now, PLAN, POLICY.model_copy(update={"mode": mode}), rejected=frozenset({best.revision}))
    assert isinstance(found, Adopt)
    assert found.plan.revision == best.revision
