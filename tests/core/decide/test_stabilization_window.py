"""After a move that had to be made, optional moves wait until the new stages were measured; what must be done at once is not held up."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import predict
from splitinference.core.cost.fitting.learn import ENOUGH_WINDOWS
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.decision import Adopt, Keep
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy, Stabilizing, StageTime, Traffic
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.decide import decide
from splitinference.core.decide.stabilization_window import hide_unsettled, start_window, update_window
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo
from splitinference.core.values.result import Limits
from tests.core.planning import START, Exhaustive, a_node, a_plan, a_problem, inputs

POLICY = Policy(
    window=timedelta(seconds=10),
    confirmations=2,
    cooldown=timedelta(seconds=30),
    review=timedelta(seconds=5),
    stabilization=timedelta(seconds=300),
    min_gain=0.05,
    load_bytes_per_s=1e9,
)
LIMITS = Limits(seconds=1)
SMALL = {"mib": 250}


def cluster(*lost: str, slo: Slo | None = None, d: float = 100.0) -> Problem:
    """Nodes that hold two of four layers each; d may turn out to be better than it seemed."""
    nodes = [a_node(name, gflops=d if name == "d" else 100.0, **SMALL) for name in "abcd" if name not in lost]
    return a_problem(*nodes, slo=slo or Slo())


PLAN = a_plan("a[0:2] b[2:4]", cluster())


def moved_at(second: float, **more) -> tuple[Plan, Memory]:
    """The plan and the memory after node b was lost."""
    found, memory = decide(inputs(cluster("b"), PLAN, second, **more), POLICY, Memory(reviewed=START), Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)
    assert found.reason is Reason.NODE_LOST
    return found.plan, memory


def first_optional(windows, *, serves: int = 20, until: int = 600, better: int = 0, **more) -> tuple[int, Adopt] | None:
    """Second of the first optional move after b was lost at second 0. `windows`: measured ones, by the second. The plan serves from
    `serves` on; from `better` on, d is three times as fast."""
    plan, memory = moved_at(0)
    for second in range(1, until):
        now = cluster("b", d=300.0 if second >= better else 100.0)
        seen = inputs(now, plan, second, moves=(START,), in_transition=second < serves, measured_windows=windows(second), **more)
        found, memory = decide(seen, POLICY, memory, Exhaustive(), LIMITS)
        if isinstance(found, Adopt):
            return second, found
    return None


def at_a_window_of(seconds: int, serves: int = 20):
    """One more measured window after so many seconds, as long as it serves."""
    return lambda second: max(0, (second - serves) // seconds)


def confirmed(end: int) -> range:
    """When a better plan is adopted that is looked for from `end` on: it must hold for the window, seen at the review's pace."""
    window = int(POLICY.window.total_seconds())
    return range(end + window, end + window + 6)


def test_a_better_plan_is_not_taken_before_the_new_stages_were_measured():
    found = first_optional(at_a_window_of(60))
    assert found is not None
    second, move = found
    assert move.reason is Reason.BETTER_PLAN
    assert second in confirmed(20 + 60 * ENOUGH_WINDOWS)


def test_on_a_machine_that_takes_ten_times_as_long_the_window_is_as_many_measurements():
    """Nothing is counted while the transition is under way, however long it takes."""
    found = first_optional(at_a_window_of(60, serves=400), serves=400, until=800)
    assert found is not None
    assert found[0] in confirmed(400 + 60 * ENOUGH_WINDOWS)


def test_without_requests_nothing_is_measured_and_the_wait_is_bounded():
    found = first_optional(lambda _: 0)
    assert found is not None
    assert found[0] in confirmed(20 + 300)


def test_a_plan_that_was_better_for_a_while_only_is_not_taken():
    """A spike before the end is no reason: what is watched begins when the window is over."""
    plan, memory = moved_at(0)
    for second in range(1, 400):
        spike = cluster("b", d=300.0 if second < 199 else 100.0)
        seen = inputs(spike, plan, second, moves=(START,), in_transition=second < 20, measured_windows=at_a_window_of(60)(second))
        found, memory = decide(seen, POLICY, memory, Exhaustive(), LIMITS)
        assert isinstance(found, Keep), second


@pytest.mark.parametrize(("windows", "over"), [(0, False), (ENOUGH_WINDOWS - 1, False), (ENOUGH_WINDOWS, True), (ENOUGH_WINDOWS + 1, True)])
def test_the_window_ends_with_the_last_measurement(windows: int, over: bool):
    memory = Memory(stabilizing=Stabilizing(since=START))
    after = update_window(inputs(cluster(), PLAN, 1, measured_windows=windows), POLICY, memory)
    assert (after.stabilizing is None) is over


@pytest.mark.parametrize(("seconds", "over"), [(0, False), (299.999, False), (300, True), (300.001, True)])
def test_the_window_ends_at_its_bound(seconds: float, over: bool):
    memory = Memory(stabilizing=Stabilizing(since=START))
    after = update_window(inputs(cluster(), PLAN, seconds), POLICY, memory)
    assert (after.stabilizing is None) is over


def test_the_bound_counts_from_when_the_plan_serves():
    memory = Memory(stabilizing=Stabilizing())
    memory = update_window(inputs(cluster(), PLAN, 1000, in_transition=True), POLICY, memory)
    assert memory.stabilizing == Stabilizing()
    memory = update_window(inputs(cluster(), PLAN, 1001), POLICY, memory)
    assert memory.stabilizing == Stabilizing(since=START + timedelta(seconds=1001))
    assert update_window(inputs(cluster(), PLAN, 1300), POLICY, memory).stabilizing is not None
    assert update_window(inputs(cluster(), PLAN, 1301), POLICY, memory).stabilizing is None


def test_zero_turns_it_off():
    off = POLICY.model_copy(update={"stabilization": timedelta(0)})
    assert update_window(inputs(cluster(), PLAN, 1), off, Memory(stabilizing=Stabilizing())).stabilizing is None


def test_a_clock_that_was_set_back_does_not_make_it_longer():
    memory = Memory(stabilizing=Stabilizing(since=START + timedelta(hours=5)))
    memory = update_window(inputs(cluster(), PLAN, 0), POLICY, memory)
    assert memory.stabilizing == Stabilizing(since=START)


@given(st.integers(0, 10), st.floats(0, 1000), st.booleans())
def test_it_is_over_when_measured_or_at_its_bound_and_never_on_the_way(windows: int, seconds: float, in_transition: bool):
    memory = Memory(stabilizing=Stabilizing(since=START))
    after = update_window(inputs(cluster(), PLAN, seconds, measured_windows=windows, in_transition=in_transition), POLICY, memory)
    assert (after.stabilizing is None) is (not in_transition and (windows >= ENOUGH_WINDOWS or seconds >= 300))


@pytest.mark.parametrize("change", list(Change))
def test_a_first_plan_and_one_that_stays_begin_no_window(change: Change):
    assert (start_window(Memory(), change).stabilizing is None) is (change in (Change.FIRST, Change.KEEP))


def test_a_plan_that_stays_does_not_end_one_either():
    memory = Memory(stabilizing=Stabilizing(since=START))
    found, after = decide(inputs(cluster(), PLAN, 1, spec_digest="new"), POLICY, memory, Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)
    assert found.change is Change.KEEP
    assert after.stabilizing == memory.stabilizing


def test_another_loss_meanwhile_is_answered_at_once_and_begins_it_anew():
    plan, memory = moved_at(0)
    memory = update_window(inputs(cluster("b"), plan, 100, measured_windows=1), POLICY, memory)
    gone = next(s.node for s in plan.segments if s.node != "a")
    found, memory = decide(inputs(cluster("b", gone), plan, 101, measured_windows=1), POLICY, memory, Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)
    assert found.mandatory
    assert memory.stabilizing == Stabilizing()


def test_an_optional_move_begins_no_window():
    seen = inputs(cluster(d=300.0), PLAN, 0)
    memory, found = Memory(reviewed=START), None
    for second in range(1, 40):
        found, memory = decide(seen.model_copy(update={"now": START + timedelta(seconds=second)}), POLICY, memory, Exhaustive(), LIMITS)
        if isinstance(found, Adopt):
            break
    assert isinstance(found, Adopt)
    assert not found.mandatory
    assert memory.stabilizing is None


# --- a broken SLO --------------------------------------------------------------------------------------------------------------------

SLO = Slo(time_per_output_token_ms=1.0)
FELT = Traffic(requests=5, time_per_output_token_ms=500.0)


def slo_move(windows) -> tuple[int, Adopt] | None:
    plan, memory = moved_at(0)
    for second in range(1, 400):
        seen = inputs(
            cluster("b", slo=SLO, d=300.0),
            plan,
            second,
            moves=(START,),
            in_transition=second < 20,
            measured_windows=windows(second),
            traffic=FELT,
        )
        found, memory = decide(seen, POLICY, memory, Exhaustive(), LIMITS)
        if isinstance(found, Adopt):
            return second, found
    return None


def test_a_broken_slo_waits_for_one_measured_window_and_not_for_all():
    found = slo_move(at_a_window_of(60))
    assert found is not None
    second, move = found
    assert move.reason is Reason.SLO_VIOLATED
    assert 20 + 60 < second < 20 + 60 * ENOUGH_WINDOWS


def test_what_clients_got_during_the_move_is_no_reason():
    """Their figures are of the move itself; unknown neither confirms nor forgets."""
    memory = Memory(stabilizing=Stabilizing(since=START))
    assert hide_unsettled(inputs(cluster(), PLAN, 1, traffic=FELT), memory).traffic == Traffic()
    assert hide_unsettled(inputs(cluster(), PLAN, 1, traffic=FELT, measured_windows=1), memory).traffic == FELT
    assert hide_unsettled(inputs(cluster(), PLAN, 1, traffic=FELT), Memory()).traffic == FELT


# --- step times ----------------------------------------------------------------------------------------------------------------------


def slow_steps(seconds: float, risen: float) -> DecisionInputs:
    """Stage 1 takes four times what is predicted, and metrics have begun to rise."""
    problem = a_problem(a_node("a", **SMALL), a_node("b", utilization=risen, **SMALL), a_node("c", **SMALL))
    alone = 4 * predict(PLAN, problem).stages[1].decode_ms
    return inputs(problem, PLAN, seconds, stages=(StageTime(node="b", start=2, end=4, alone_ms=alone, steps=50, age_seconds=10),))


def test_steps_of_stages_that_were_just_started_do_not_say_that_their_node_is_busy():
    def watched(memory: Memory) -> Memory:
        for look in range(8):
            _, memory = decide(slow_steps(3 * look, 0.05 * look), POLICY, memory, Exhaustive(), LIMITS)
        return memory

    assert "b" in watched(Memory(reviewed=START)).slowed
    assert watched(Memory(reviewed=START, stabilizing=Stabilizing(since=START))).slowed == {}
