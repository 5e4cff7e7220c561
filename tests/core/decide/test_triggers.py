"""Reasons to solve again: the order, the numbers in the messages, and what is no reason."""

from datetime import timedelta

import pytest

from splitinference.core.cost import predict
from splitinference.core.decide.base.policy import Memory, Mode, Policy, Traffic, Watch, sustained
from splitinference.core.decide.base.triggers import Reason, Trigger, check, may_move
from splitinference.core.transition.steps import Blocked
from splitinference.core.values.cluster import Link, LinkQuality, Network, Processor, Taint
from splitinference.core.values.problem import Constraints, Slo, Toleration, TrustRule
from tests.core.planning import START, a_node, a_plan, a_problem, inputs

POLICY = Policy(window=timedelta(seconds=20), confirmations=3, cooldown=timedelta(seconds=60), review=timedelta(hours=1))
IDLE = a_problem(a_node("a"), a_node("b"), a_node("c"))
PLAN = a_plan("a[0:2] b[2:4]", IDLE)
JUST_REVIEWED = Memory(reviewed=START)


def busy(share: float | None):
    return a_problem(a_node("a"), a_node("b", utilization=share), a_node("c"))


def over_time(problems, policy=POLICY, step=5.0, memory=JUST_REVIEWED, **more) -> list[Trigger | None]:
    """The trigger after each of the problems, so many seconds apart."""
    found = []
    for index, problem in enumerate(problems):
        trigger, memory = check(inputs(problem, PLAN, (index + 5) * step, **more), policy, memory)
        found.append(trigger)
    return found


def mandatory(problem, plan=PLAN, **more) -> Trigger:
    trigger, _ = check(inputs(problem, plan, **more), POLICY, Memory())
    assert trigger is not None
    assert trigger.mandatory
    return trigger


def test_no_plan():
    assert mandatory(IDLE, None).reason is Reason.NO_PLAN


def test_a_changed_specification():
    assert mandatory(IDLE, spec_digest="other").reason is Reason.SPEC_CHANGED


def test_a_node_that_is_gone():
    found = mandatory(a_problem(a_node("a"), a_node("c")))
    assert found.reason is Reason.NODE_LOST
    assert found.message == "stage 1 runs on b, which cannot be used: it no longer exists"


GPU = Processor(name="x.y/gpu/0", flops_per_s=1e12, memory_bandwidth_bytes_per_s=1e12, memory_free_bytes=2**40, resource="x.y/gpu")
CPU = GPU.model_copy(update={"name": "", "resource": ""})


def test_a_device_that_is_gone_or_that_others_have():
    plan = PLAN.model_copy(
        update={"pipelines": (PLAN.pipelines[0].model_copy(update={"segments": (
            PLAN.segments[0], PLAN.segments[1].model_copy(update={"processor": GPU.name}))}),)}
    )  # fmt: skip
    there = a_problem(a_node("a"), a_node("b", processors=(CPU, GPU)))
    found, _ = check(inputs(there, plan), POLICY, Memory())
    assert found is None or found.reason is not Reason.NODE_LOST
    found = mandatory(a_problem(a_node("a"), a_node("b", processors=(CPU,))), plan)
    assert found.reason is Reason.NODE_LOST
    assert found.message == "stage 1 runs on b, which has no processor x.y/gpu/0 for it: the processor is gone, or others use it"


def test_a_plan_on_a_node_stays_when_the_node_gets_a_device():
    found, _ = check(inputs(a_problem(a_node("a"), a_node("b", processors=(CPU, GPU))), PLAN), POLICY, Memory())
    assert found is None or found.reason is not Reason.NODE_LOST


def test_a_node_that_is_not_ready():
    assert (
        "stage 1 runs on b, which cannot be used: not ready"
        in mandatory(a_problem(a_node("a"), a_node("b", ready=False), a_node("c"))).message
    )


def test_a_node_that_is_cordoned_is_left_before_its_pods_are_evicted():
    cordoned = a_node("b", taints=(Taint(key="node.kubernetes.io/unschedulable"),))
    found = mandatory(a_problem(a_node("a"), cordoned))
    assert found.reason is Reason.NODE_LOST
    assert "node.kubernetes.io/unschedulable" in found.message


def test_a_segment_that_keeps_failing():
    found = mandatory(IDLE, quarantined={"b": "3 failures within 40 s, last: exit code 137"})
    assert found == Trigger(
        reason=Reason.SEGMENT_FAILED, message="stage 1 on b keeps failing: 3 failures within 40 s, last: exit code 137", mandatory=True
    )


def test_memory_pressure_is_said_by_the_node_or_follows_from_the_numbers():
    assert mandatory(IDLE, pressured={"b": "MemoryPressure"}).message == "stage 1 on b: MemoryPressure"
    found = mandatory(a_problem(a_node("a"), a_node("b", mib=100)))
    assert found.reason is Reason.MEMORY_PRESSURE
    assert "MiB needed" in found.message


def test_a_trust_label_that_was_removed():
    rules = Constraints(trust=(TrustRule(start=0, end=1, labels={"trust": "high"}),))
    trusted = a_problem(a_node("a", labels={"trust": "high"}), a_node("b"), constraints=rules)
    assert check(inputs(trusted, PLAN, 1), POLICY, JUST_REVIEWED)[0] is None
    found = mandatory(a_problem(a_node("a"), a_node("b"), constraints=rules))
    assert found.reason is Reason.PRIVACY_CHANGED
    assert found.message == "stage 0 on a: trust: layers 0 to 1 need trust=high"


@pytest.mark.parametrize("mode", Mode)
def test_mandatory_reasons_hold_in_every_mode(mode):
    trigger, _ = check(inputs(a_problem(a_node("a")), PLAN), Policy(mode=mode), Memory())
    assert trigger is not None
    assert trigger.reason is Reason.NODE_LOST


def test_the_order_is_the_priority():
    gone = a_problem(a_node("a"))
    assert mandatory(gone, spec_digest="other", quarantined={"a": "x"}).reason is Reason.SPEC_CHANGED
    assert mandatory(gone, quarantined={"a": "x"}).reason is Reason.NODE_LOST


def test_utilization_by_others_must_hold_for_the_window_and_be_confirmed():
    found = over_time([busy(0.93)] * 6)
    assert found[:4] == [None] * 4
    assert found[4] == Trigger(
        reason=Reason.UTILIZATION_SHIFTED, message="stage 1 on b: 93 % used by others for 20 s (limit 70 %)", mandatory=False
    )


def test_what_is_lost_to_waiting_is_said_so():
    waiting = a_problem(a_node("a"), a_node("b", utilization=0.93, waiting=0.93))
    (*_, last) = over_time([waiting] * 5)
    assert last is not None
    assert last.message == "stage 1 on b: 93 % lost to waiting for a processor for 20 s (limit 70 %)"


def test_one_quiet_moment_starts_the_window_anew():
    assert over_time([busy(0.93), busy(0.93), busy(0.93), busy(0.2), busy(0.93), busy(0.93)]) == [None] * 6


def test_unknown_utilization_is_no_reason_and_does_not_forget_one():
    assert over_time([busy(None)] * 10) == [None] * 10
    found = over_time([busy(0.93), busy(0.93), busy(None), busy(0.93), busy(0.93), busy(0.93), busy(0.93)])
    assert found[2] is None
    assert found[-1] is not None


def test_a_reason_that_was_unknown_for_long_starts_anew():
    found = over_time([busy(0.93)] * 3 + [busy(None)] * 10 + [busy(0.93)])
    assert found == [None] * 14


def test_a_watch_that_only_just_holds_must_also_be_confirmed_often_enough():
    memory = JUST_REVIEWED
    for seconds in (0, 30):
        trigger, memory = check(inputs(busy(0.93), PLAN, seconds), POLICY, memory)
        assert trigger is None, "two looks are not three confirmations"


def test_frozen_does_not_look_for_optional_reasons():
    assert over_time([busy(0.93)] * 10, POLICY.model_copy(update={"mode": Mode.FROZEN})) == [None] * 10


def test_a_broken_slo_names_the_limit_and_needs_traffic():
    slow = a_problem(a_node("a"), a_node("b"), slo=Slo(time_per_output_token_ms=10))
    traffic = Traffic(requests=5, time_per_output_token_ms=41)
    found = over_time([slow] * 5, traffic=traffic)
    assert found[-1] == Trigger(
        reason=Reason.SLO_VIOLATED, message="p95 time per output token 41 ms for 20 s (limit 10 ms)", mandatory=False
    )
    assert over_time([slow] * 5, traffic=Traffic(requests=0, time_per_output_token_ms=41)) == [None] * 5


def test_a_link_that_became_slow():
    slow = Link(source="a", target="b", quality=LinkQuality(bandwidth_bytes_per_s=1e6, rtt_ms=30))
    problem = a_problem(
        a_node("a"), a_node("b"), network=Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), links=(slow,))
    )
    found = over_time([problem] * 5)[-1]
    assert found is not None
    assert found.reason is Reason.LINK_DEGRADED
    assert found.message.startswith("the link after stage 0 on a takes ")


def test_a_slow_hop_at_a_node_over_the_limit_is_not_the_links_fault():
    slow = Link(source="a", target="b", quality=LinkQuality(bandwidth_bytes_per_s=1e6, rtt_ms=30))
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=125e6, rtt_ms=0.5), links=(slow,))
    for end in ("a", "b"):
        # the hop is slow from the start, the node's use becomes known only later: it still is the node
        nodes = (a_node(name, utilization=0.9 if name == end else 0.0) for name in ("a", "b"))
        calm, busy_end = a_problem(a_node("a"), a_node("b"), network=network), a_problem(*nodes, network=network)
        found = over_time([calm] * 3 + [busy_end] * 12)
        assert [trigger.reason for trigger in found if trigger][:1] == [Reason.UTILIZATION_SHIFTED], end


def test_no_optional_move_while_one_is_under_way_in_the_cooldown_or_beyond_the_budget():
    def moved(*seconds_ago: float):
        now = 10_000.0
        moves = tuple(START + timedelta(seconds=now - s) for s in seconds_ago)
        return may_move(inputs(IDLE, PLAN, now, moves=moves), Policy(cooldown=timedelta(seconds=60), moves_per_hour=2))

    assert moved()
    assert moved(61)
    assert not moved(59)
    assert not moved(200, 100)
    assert moved(3700, 100)
    assert not may_move(inputs(IDLE, PLAN, in_transition=True), Policy())


def test_a_better_plan_is_looked_for_now_and_then():
    policy = POLICY.model_copy(update={"review": timedelta(seconds=60)})
    quiet = Memory(reviewed=START)
    assert check(inputs(IDLE, PLAN, 59), policy, quiet)[0] is None
    found, _ = check(inputs(IDLE, PLAN, 60), policy, quiet)
    assert found is not None
    assert found.reason is Reason.BETTER_PLAN


def test_memory_survives_being_written_and_read():
    _, memory = check(inputs(busy(0.93), PLAN, 0), POLICY, JUST_REVIEWED)
    assert memory.watches
    assert Memory.model_validate_json(memory.model_dump_json()) == memory


def test_without_leave_no_better_plan_is_looked_for_but_a_reason_counts_all_the_same():
    policy = POLICY.model_copy(update={"review": timedelta(seconds=5)})
    assert [t.reason for t in over_time([IDLE] * 2, policy) if t] == [Reason.BETTER_PLAN] * 2
    assert [t for t in over_time([IDLE] * 2, policy, may_review=False) if t] == []
    found = over_time([busy(0.9)] * 6, policy, may_review=False)
    assert {t.reason for t in found if t} == {Reason.UTILIZATION_SHIFTED}


def test_what_clients_feel_and_the_cost_model_confirms_counts_after_one_confirmation():
    """Window 20 s with 3 confirmations: one confirmation is due after 6.7 s, so at the third look instead of the fifth."""
    slo = Slo(time_per_output_token_ms=40)
    broken = Traffic(requests=5, time_per_output_token_ms=60.0)
    noise = Traffic(requests=5, time_per_output_token_ms=30.0)
    slow, fine = busy(0.9).model_copy(update={"slo": slo}), IDLE.model_copy(update={"slo": slo})
    assert [t is not None for t in over_time([slow] * 5, traffic=broken)] == [False, False, True, True, True]
    assert [t is not None for t in over_time([slow] * 5, traffic=noise)] == [False, False, False, False, True], "a busy node alone"
    assert [t is not None for t in over_time([fine] * 5, traffic=broken)] == [False, False, False, False, True], "slow requests alone"


def planned_as(plan, **stage_or_plan: float):
    """The plan as if other figures had been predicted for it: its whole time per output token, or the link after its first stage."""
    prediction = plan.prediction
    if "link_ms" in stage_or_plan:
        first = prediction.stages[0].model_copy(update=stage_or_plan)
        stage_or_plan = {"stages": (first, *prediction.stages[1:])}
    return plan.model_copy(update={"prediction": prediction.model_copy(update=stage_or_plan)})


def lasting(problem, plan, policy=POLICY, **more) -> Trigger | None:
    """The trigger when this has held for a window."""
    memory, trigger = JUST_REVIEWED, None
    for step in range(5):
        trigger, memory = check(inputs(problem, plan, 100 + 5 * step, **more), policy, memory)
    return trigger


def degraded(now_ms: float, planned_ms: float | None = None, policy=POLICY, **share: float) -> bool:
    """Whether a link that takes so long now, by its round trip, was planned with so much less that it is a reason to move."""
    quick = LinkQuality(bandwidth_bytes_per_s=1e18, rtt_ms=now_ms)
    problem = a_problem(a_node("a"), a_node("b"), network=Network(default=quick))
    plan = a_plan("a[0:2] b[2:4]", problem)
    exactly_ms = plan.prediction.stages[0].link_ms
    assert exactly_ms == pytest.approx(now_ms, abs=1e-6)
    if "above_floor_ms" in share:
        policy = policy.model_copy(update={"link_floor_ms": exactly_ms - planned_ms - share["above_floor_ms"]})
    found = lasting(problem, planned_as(plan, link_ms=planned_ms if planned_ms is not None else exactly_ms / share["times"]), policy)
    return found is not None and found.reason is Reason.LINK_DEGRADED


@pytest.mark.parametrize(("times", "is_degraded"), [(1.999, False), (2.0, False), (2.001, True)])
def test_a_link_is_degraded_above_twice_what_was_planned(times: float, is_degraded: bool):
    assert degraded(8.0, times=times) is is_degraded


@pytest.mark.parametrize(("above_floor_ms", "is_degraded"), [(-1e-6, False), (0.0, False), (1e-6, True)])
def test_and_above_the_floor_of_what_it_takes_longer(above_floor_ms: float, is_degraded: bool):
    assert degraded(3.0, 1.0, above_floor_ms=above_floor_ms) is is_degraded


@pytest.mark.parametrize(
    ("now_ms", "planned_ms", "is_degraded"), [(3.0, 0.99, True), (3.0, 1.01, False), (30.0, 20.0, False), (1.0, 0.1, False)]
)
def test_the_floor_is_2_ms_and_both_must_hold(now_ms: float, planned_ms: float, is_degraded: bool):
    assert degraded(now_ms, planned_ms) is is_degraded


@pytest.mark.parametrize(("share", "shifted"), [(0.69, False), (0.7, False), (0.71, True)])
def test_a_node_is_too_busy_above_the_limit(share, shifted):
    assert (lasting(busy(share), PLAN) is not None) is shifted


@pytest.mark.parametrize(("ms", "broken"), [(39.9, False), (40.0, False), (40.1, True)])
def test_a_limit_is_broken_above_it(ms, broken):
    slow = IDLE.model_copy(update={"slo": Slo(time_per_output_token_ms=40, time_to_first_token_ms=40)})
    assert (lasting(slow, PLAN, traffic=Traffic(requests=1, time_per_output_token_ms=ms)) is not None) is broken
    assert (lasting(slow, PLAN, traffic=Traffic(requests=1, time_to_first_token_ms=ms)) is not None) is broken


@pytest.mark.parametrize(("share_of_twice", "corroborated"), [(0.999, False), (1.0, False), (1.001, True)])
def test_the_cost_model_confirms_what_clients_feel_only_above_the_least_gain(share_of_twice, corroborated):
    """The least gain is 100 %, so the plan must be predicted to be more than twice as slow as it was made for."""
    policy = POLICY.model_copy(update={"min_gain": 1.0})
    problem = busy(0.9).model_copy(update={"slo": Slo(time_per_output_token_ms=40)})
    now_ms = predict(PLAN, problem).time_per_output_token_ms
    plan = planned_as(PLAN, time_per_output_token_ms=now_ms / 2 / share_of_twice)
    memory, traffic = JUST_REVIEWED, Traffic(requests=5, time_per_output_token_ms=60.0)
    for seconds in (100, 107):
        trigger, memory = check(inputs(problem, plan, seconds, traffic=traffic), policy, memory)
    assert (trigger is not None) is corroborated


@pytest.mark.parametrize(
    ("seconds", "confirmations", "corroborated", "holds"),
    [
        (60, 3, False, True),
        (59.9, 3, False, False),
        (60, 2, False, False),
        (20, 2, True, True),  # a third of the window, and one more confirmation than the first look
        (19.9, 2, True, False),
        (60, 1, True, False),
    ],
)
def test_a_reason_is_sustained_after_its_window_and_confirmations(seconds, confirmations, corroborated, holds):
    watch = Watch(since=START, confirmations=confirmations, last=START)
    policy = Policy(window=timedelta(seconds=60), confirmations=3)
    assert sustained(watch, policy, START + timedelta(seconds=seconds), corroborated=corroborated) is holds


def test_one_confirmation_is_enough_where_the_policy_asks_for_one():
    watch, policy = Watch(since=START, confirmations=1, last=START), Policy(window=timedelta(seconds=60), confirmations=1)
    assert sustained(watch, policy, START + timedelta(seconds=60), corroborated=True)


@pytest.mark.parametrize(("seconds", "confirmations"), [(19.9, 1), (20, 2), (20.1, 2)])
def test_a_confirmation_counts_at_most_once_in_its_share_of_the_window(seconds, confirmations):
    policy = Policy(window=timedelta(seconds=60), confirmations=3)
    _, memory = Memory().watching("x", True, policy, START)
    watch, _ = memory.watching("x", True, policy, START + timedelta(seconds=seconds))
    assert watch.confirmations == confirmations


@pytest.mark.parametrize(("seconds", "kept"), [(119.9, True), (120, True), (120.1, False)])
def test_what_is_not_known_keeps_a_watch_for_two_windows(seconds, kept):
    policy = Policy(window=timedelta(seconds=60), confirmations=3)
    _, memory = Memory().watching("x", True, policy, START)
    watch, _ = memory.watching("x", None, policy, START + timedelta(seconds=seconds))
    assert (watch is not None) is kept


@pytest.mark.parametrize(("seconds", "allowed"), [(59.9, False), (60, True), (60.1, True)])
def test_the_cooldown_ends_when_its_time_has_passed(seconds, allowed):
    assert may_move(inputs(IDLE, PLAN, seconds, moves=(START,)), Policy(cooldown=timedelta(seconds=60))) is allowed


@pytest.mark.parametrize(("seconds", "allowed"), [(3599.9, False), (3600, True)])
def test_a_move_counts_for_the_budget_for_an_hour(seconds, allowed):
    policy = Policy(cooldown=timedelta(0), moves_per_hour=1)
    assert may_move(inputs(IDLE, PLAN, seconds, moves=(START,)), policy) is allowed


@pytest.mark.parametrize(("seconds", "given_up"), [(14.9, False), (15, True), (15.1, True)])
def test_a_walk_is_blocked_after_15_seconds_without_a_step_left(seconds, given_up):
    stuck = {"blocked": Blocked(why="b has no room"), "in_transition": True}
    _, memory = check(inputs(IDLE, PLAN, 100, **stuck), POLICY, JUST_REVIEWED)
    trigger, _ = check(inputs(IDLE, PLAN, 100 + seconds, **stuck), POLICY, memory)
    assert (trigger is not None and trigger.reason is Reason.TRANSITION_BLOCKED) is given_up


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        (Toleration(key="gpu", operator="Exists"), True),
        (Toleration(key="gpu", operator="Exists", effect="NoSchedule"), True),
        (Toleration(key="gpu", operator="Exists", effect="NoExecute"), False),
        (Toleration(key="gpu", operator="Exists", effect="PreferNoSchedule"), False),
        (Toleration(key="gpu", value="yes", effect="NoSchedule"), True),
        (Toleration(key="gpu", value="yes", effect="NoExecute"), False),
        (Toleration(key="gpu", value="no"), False),
        (Toleration(key="other", operator="Exists"), False),
        (Toleration(operator="Exists"), True),
    ],
)
def test_a_taint_is_tolerated_where_key_value_and_effect_match(toleration, tolerated):
    tainted = a_node("b", taints=(Taint(key="gpu", value="yes", effect="NoSchedule"),))
    problem = a_problem(a_node("a"), tainted, constraints=Constraints(tolerations=(toleration,)))
    trigger, _ = check(inputs(problem, PLAN), POLICY, JUST_REVIEWED)
    assert (trigger is None) is tolerated
