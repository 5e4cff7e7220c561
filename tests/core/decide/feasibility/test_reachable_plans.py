"""Where the best plan cannot be walked to: another that can is found, tries are spread, and what stood in the way is remembered."""

import random
from datetime import timedelta

import pytest

from splitinference.core.cost import predict, violations
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Obstacle, Policy
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.decide import decide
from splitinference.core.transition.dry_run import dry_run
from splitinference.core.transition.state import NamedSegment, Observed, ObservedSegment, Phase, Shortage, ShortOf, Target
from splitinference.core.transition.steps import Blocked, Done, Strategy
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo
from splitinference.core.values.result import Limits, Outcome, TimedOut
from tests.core.planning import MIB, START, Exhaustive, a_node, a_plan, a_problem, all_plans, inputs, text_of

POLICY = Policy(cooldown=timedelta(seconds=60), review=timedelta(hours=1))
LIMITS = Limits(seconds=1)


def a_target(plan: Plan, made_for: str) -> Target:
    """The plan's segments; `made_for` is in their names, as a changed specification is."""
    assert plan.prediction is not None
    stages = zip(plan.segments, plan.prediction.stages, strict=True)
    return Target(
        pipelines=(
            tuple(
                NamedSegment(
                    name=f"{made_for}-{s.start}-{s.end}-{s.node}", start=s.start, end=s.end, node=s.node, memory_bytes=p.memory_bytes
                )
                for s, p in stages
            ),
        )
    )


class Ground:
    """What serves, on the nodes of a problem."""

    def __init__(self, problem: Problem, serves: str) -> None:
        self.problem, self.plan = problem, a_plan(serves, problem)
        target = a_target(self.plan, "old")
        self.observed = Observed(
            segments={n: ObservedSegment(**s.model_dump(), phase=Phase.PROVEN) for n, s in target.segments.items()},
            serving=target.route,
            room_bytes={node.name: node.memory_free_bytes for node in problem.snapshot.nodes},
        )

    def ends(self, made_for: str):
        """How the walk to a plan made for this would end."""
        return lambda plan: dry_run(a_target(plan, made_for), self.observed, Strategy.SURGE)

    def inputs(self, seconds: float = 0.0, **more) -> DecisionInputs:
        held = {node.name: self.observed.held_bytes(node.name) for node in self.problem.snapshot.nodes}
        return inputs(self.problem, self.plan, seconds, serving=self.plan, held_bytes=held, **more)


def small(*names: str, mib: int = 250):
    return [a_node(name, mib=mib) for name in names]


def test_on_full_nodes_a_changed_specification_goes_over_the_node_that_is_free():
    ground = Ground(a_problem(*small("a", "b", "c")), "a[0:2] b[2:4]")
    found, _ = decide(ground.inputs(spec_digest="new"), POLICY, Memory(), Exhaustive(), LIMITS, dry_run=ground.ends("new"))
    assert isinstance(found, Adopt)
    assert ground.ends("new")(found.plan) == Done()
    assert "c[" in text_of(found.plan)
    assert "the best of all cannot be reached: segment [0, 2) needs 221 MiB, but a has 29 MiB free" in found.message


def test_a_limit_that_only_a_plan_without_a_way_would_keep_is_said_to_be_broken():
    slo = Slo(time_per_output_token_ms=8)
    ground = Ground(a_problem(*small("a", "b"), a_node("c", mib=250, gflops=25), slo=slo), "a[0:2] b[2:4]")
    found, _ = decide(ground.inputs(spec_digest="new"), POLICY, Memory(), Exhaustive(), LIMITS, dry_run=ground.ends("new"))
    assert isinstance(found, Adopt)
    assert ground.ends("new")(found.plan) == Done()
    assert "no reachable plan meets the SLO: " in found.message
    assert "the limit is 8.00 ms" in found.message


def test_without_any_way_the_plan_stays_and_the_numbers_are_said():
    ground = Ground(a_problem(*small("a", "b")), "a[0:2] b[2:4]")
    found, memory = decide(ground.inputs(spec_digest="new"), POLICY, Memory(), Exhaustive(), LIMITS, dry_run=ground.ends("new"))
    assert isinstance(found, Keep)
    assert found.reason is Kept.BLOCKED
    assert "needs 221 MiB, but a has 29 MiB free beside 221 MiB of present segments" in found.message
    assert memory.tries == 1


def test_a_first_plan_is_made_even_where_others_are_in_the_way():
    problem = a_problem(*small("a", "b"))
    found, _ = decide(inputs(problem, None), POLICY, Memory(), Exhaustive(), LIMITS, dry_run=lambda _: Blocked(why="no room"))
    assert isinstance(found, Adopt)


def times_asked(seconds: range, room=lambda second: 250) -> list[int]:
    """When the solver was asked, one look a second, while nothing can be reached."""
    memory, solver, asked = Memory(), Exhaustive(), []
    for second in seconds:
        ground = Ground(a_problem(*small("a", "b", mib=room(second))), "a[0:2] b[2:4]")
        before = len(solver.asked)
        _, memory = decide(ground.inputs(second, spec_digest="new"), POLICY, memory, solver, LIMITS, dry_run=ground.ends("new"))
        asked += [second] if len(solver.asked) > before else []
    return asked


def test_tries_are_further_and_further_apart_while_nothing_changes():
    assert times_asked(range(1000)) == [0, 15, 45, 105, 225, 465, 705, 945]


def test_a_solver_that_ran_out_of_time_is_asked_again_as_soon_as_the_first_time():
    memory, asked = Memory(), []

    def slow(problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        asked.append(second)
        return TimedOut(best=None, bound=0.0)

    for second in range(100):
        _, memory = decide(inputs(a_problem(*small("a", "b")), None, second), POLICY, memory, slow, LIMITS)
    assert asked == [0, 15, 30, 45, 60, 75, 90]


def test_where_room_wavers_at_every_look_a_try_is_made_every_five_seconds_at_most():
    assert times_asked(range(30), room=lambda second: 250 + second % 2) == [0, 5, 10, 15, 20, 25]


def test_a_wish_that_changed_is_tried_at_once():
    ground, memory = Ground(a_problem(*small("a", "b")), "a[0:2] b[2:4]"), Memory()
    _, memory = decide(ground.inputs(0, spec_digest="new"), POLICY, memory, Exhaustive(), LIMITS, dry_run=ground.ends("new"))
    found, _ = decide(ground.inputs(1, spec_digest="new", strategy=Strategy.BREAK_FIRST), POLICY, memory, Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)


def random_ground(numbers: random.Random) -> Ground | None:
    """Two to four nodes of little and of more room, and a plan that serves on them."""
    nodes = [
        a_node(name, mib=numbers.choice((120, 230, 250, 340, 460, 700)), gflops=numbers.choice((50, 80, 100, 120)))
        for name in "abcd"[: numbers.choice((2, 3, 3, 4))]
    ]
    problem = a_problem(*nodes)
    plans = [plan for plan in all_plans(problem) if not violations(plan, problem)]
    return Ground(problem, text_of(numbers.choice(plans))) if plans else None


def test_what_is_adopted_can_be_walked_to_and_a_way_is_rarely_missed():
    """All segments are to be made anew, as for another image. Every plan is tried, to know whether there was a way."""
    numbers, ways, missed = random.Random(5), 0, 0
    for _ in range(120):
        if (ground := random_ground(numbers)) is None:
            continue
        ends = ground.ends("new")
        found, _ = decide(ground.inputs(spec_digest="new"), POLICY, Memory(), Exhaustive(), LIMITS, dry_run=ends)
        if isinstance(found, Adopt):
            ways += 1
            assert ends(found.plan) == Done()
            continue
        assert found.reason is Kept.BLOCKED
        valid = (plan for plan in all_plans(ground.problem) if not violations(plan, ground.problem))
        missed += any(ends(plan.model_copy(update={"prediction": predict(plan, ground.problem)})) == Done() for plan in valid)
    assert ways > 50
    assert missed <= ways / 20, f"{missed} of {ways + missed}"


# --- a walk that has begun -----------------------------------------------------------------------------------------------------------

SHORT = Blocked(why="segment [2, 4) needs 220 MiB on c", short=(Shortage(node="c", resource=ShortOf.MEMORY, needed=220, free=30 * MIB),))


def blocked_walk(seconds, memory: Memory, ground: Ground, **more):
    """The walk to a[0:2] c[2:4], while a[0:2] b[2:4] serves, has no way on."""
    known = ground.inputs(seconds, blocked=SHORT, **more).model_copy(update={"plan": a_plan("a[0:2] c[2:4]", ground.problem)})
    return decide(known, POLICY, memory, Exhaustive(), LIMITS, dry_run=ground.ends("old"))


def stuck(**more) -> tuple[list[int], Adopt | Keep, Memory]:
    """When another plan was taken within five minutes, the first that was, and the memory after it."""
    ground = Ground(a_problem(*small("a", "b", "c")), "a[0:2] b[2:4]")
    memory, taken, first = Memory(reviewed=START), [], None
    for second in range(0, 300, 5):
        found, memory = blocked_walk(second, memory, ground, **more)
        if isinstance(found, Adopt):
            taken.append(second)
            first = first or found
    assert first is not None
    return taken, first, memory


def test_a_walk_without_a_way_is_given_up_after_a_moment_for_the_best_that_can_be_walked_to():
    taken, found, memory = stuck()
    assert taken[0] == 15
    assert isinstance(found, Adopt)
    assert (found.reason, text_of(found.plan)) == (Reason.TRANSITION_BLOCKED, "a[0:2] b[2:4]")
    assert found.message.startswith("the transition has been blocked for 15 s: segment [2, 4) needs 220 MiB on c; ")
    assert "no weights have to move" in found.message
    assert memory.obstacles["c"].free_bytes == 30 * MIB


@pytest.mark.parametrize(("more", "expected"), [({}, [15, 75, 135, 195, 255]), ({"served": False}, list(range(15, 300, 20)))])
def test_walks_are_given_up_at_most_once_in_a_cooldown_unless_nobody_is_served(more, expected):
    """The walk is blocked again and again, whatever is done."""
    assert stuck(**more)[0] == expected


def test_the_budget_of_moves_counts():
    moves = tuple(START - timedelta(minutes=minute) for minute in range(6, 0, -1))
    ground, memory = Ground(a_problem(*small("a", "b", "c")), "a[0:2] b[2:4]"), Memory()
    for second in (0, 15, 30):
        found, memory = blocked_walk(second, memory, ground, moves=moves)
    assert found == Keep(reason=Kept.STEADY)


@pytest.mark.parametrize(("minutes", "expected"), [(5, Keep), (11, Adopt)])
def test_what_was_in_the_way_is_a_fact_for_ten_minutes(minutes, expected):
    """b is busy and c would take its segment, but c had no room a while ago."""
    now = a_problem(a_node("a", mib=250), a_node("b", mib=250, utilization=0.93), a_node("c", mib=250))
    memory = Memory(reviewed=START, obstacles={"c": Obstacle(at=START + timedelta(minutes=60 - minutes), free_bytes=30 * MIB)})
    for second in range(3600, 3700, 20):
        found, memory = decide(inputs(now, a_plan("a[0:2] b[2:4]", now), second), POLICY, memory, Exhaustive(), LIMITS)
        if isinstance(found, Adopt):
            break
    assert isinstance(found, expected)


def test_an_obstacle_never_keeps_a_model_from_being_mended():
    """b is gone, and c is the only other: that it had no room lately is no reason to serve nobody."""
    now = a_problem(*small("a", "c"))
    memory = Memory(obstacles={"c": Obstacle(at=START, free_bytes=30 * MIB)})
    found, _ = decide(inputs(now, a_plan("a[0:2] b[2:4]"), 5), POLICY, memory, Exhaustive(), LIMITS)
    assert isinstance(found, Adopt)
    assert text_of(found.plan) == "a[0:2] c[2:4]"
