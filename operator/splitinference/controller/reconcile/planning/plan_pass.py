"""A pass between gathering and acting, as one pure function: what is observed → the decision, the plan, and the next steps towards it.

The operator and the simulation both call it. Nothing here reads or writes anything; the solver is an argument.
"""

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field, replace

from splitinference.core.cost import violations
from splitinference.core.cost.checks.eligible import forbidden
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Policy
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.decide.decide import decide
from splitinference.core.transition.dry_run import dry_run
from splitinference.core.transition.state import NamedSegment, Observed, Phase, Route, Target
from splitinference.core.transition.steps import Action, Blocked, Cutover, Done, Steps, Strategy, next_steps
from splitinference.core.values.cluster import Node, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints
from splitinference.core.values.result import Limits

Next = Steps | Done | Blocked
Words = tuple[str, ...]


@dataclass(frozen=True)
class Course:
    """A plan with its named segments (None where the model that it was made for cannot be read). `asked`: hash of the specification that it
    was made for; `rules`: the constraints of that specification, of which those of privacy hold for every route on the way."""

    plan: Plan
    target: Target | None
    asked: str
    rules: Constraints = field(default_factory=Constraints)


@dataclass(frozen=True)
class Question:
    """What a decision goes by, beside what the transition shows.

    `facts`: all but the fields that `plan_pass` fills in from the course and from what is observed (`plan`, `plan_spec_digest`,
    `in_transition`, `served`, `held_bytes`, `blocked`, `strategy`).
    """

    facts: DecisionInputs
    policy: Policy
    memory: Memory
    limits: Limits


@dataclass(frozen=True)
class PassInputs:
    """What was gathered. `course`: the plan in force; `nodes`: of the snapshot, for the rules of privacy; `stops_exposed`: no route may be
    written that breaks a rule of privacy; `question`: None where what is asked for cannot be worked with, so the plan in force stays;
    `avoided`: nodes where segments keep failing; `unloaded`: nothing is to serve now, so there is nothing to walk to."""

    observed: Observed
    strategy: Strategy
    course: Course | None
    nodes: tuple[Node, ...]
    stops_exposed: bool
    question: Question | None = None
    avoided: frozenset[str] = frozenset()
    unloaded: bool = False


@dataclass(frozen=True)
class PassPlan:
    """What the pass has decided and does next. `course`: the plan after the decision; `steps`: towards it, None where there is no plan;
    `exposed`: what the rules of privacy kept from being done, in words."""

    decision: Adopt | Keep | None
    memory: Memory | None
    course: Course | None
    steps: Next | None
    exposed: Words = ()

    @property
    def in_transition(self) -> bool:
        """Whether a transition is under way."""
        return self.steps is not None and not isinstance(self.steps, Done)


def plan_pass(inputs: PassInputs, solve: Solve, course_of: Callable[[Plan], Course]) -> PassPlan:
    """The decision, and the next steps after it. `course_of` names the segments of a plan that might be adopted.

    The next steps towards the plan in force are computed once, for the decision and for the transition; after an adoption once more,
    towards the new plan.
    """
    steps = _next(inputs, inputs.course, inputs.observed)
    if inputs.question is None:
        return _allowed(PassPlan(None, None, inputs.course, steps), inputs)
    question = inputs.question

    def outcome_of(plan: Plan) -> Done | Blocked:
        course = course_of(plan)
        assert course.target is not None  # noqa: S101 - a plan that was just made is for a model that was read
        return dry_run(course.target, _hoped(inputs.observed, course, inputs.avoided), inputs.strategy)

    decision, memory = decide(_facts(inputs, question, steps), question.policy, question.memory, solve, question.limits, dry_run=outcome_of)
    if isinstance(decision, Adopt):
        return _adopted(inputs, decision, memory, course_of(decision.plan))
    return _allowed(PassPlan(decision, memory, inputs.course, steps), inputs)


def confirmed(planned: PassPlan, inputs: PassInputs, snapshot: Snapshot) -> PassPlan:
    """The same with a `snapshot` that was read after an adoption was decided: its steps if the plan still fits; or a Keep, and the plan of
    before, if another resource's plan took the memory meanwhile."""
    decision, question = planned.decision, inputs.question
    if not isinstance(decision, Adopt) or question is None or planned.memory is None or planned.course is None:
        return planned
    broken = violations(decision.plan, question.facts.problem.model_copy(update={"snapshot": snapshot}))
    if taken := [violation.message for violation in broken if violation.constraint == "memory"]:
        message = f"{decision.message}; another resource's plan took the memory: {'; '.join(taken)}"
        steps = _next(inputs, inputs.course, inputs.observed)
        overtaken = Keep(reason=Kept.OVERTAKEN, message=message)
        return _allowed(PassPlan(overtaken, planned.memory, inputs.course, steps), inputs)
    observed = with_room(inputs.observed, snapshot)
    if observed == inputs.observed:
        return planned
    return _adopted(replace(inputs, observed=observed), decision, planned.memory, planned.course)


def with_room(observed: Observed, snapshot: Snapshot) -> Observed:
    """What is observed, with the room that this snapshot shows on nodes that are ready."""
    room_bytes, millicores, room_devices = {}, {}, {}
    for node in snapshot.nodes:
        if node.ready:
            name = node.name
            room_bytes[name] = node.memory_free_bytes
            if node.millicores_free is not None:
                millicores[name] = node.millicores_free
            if node.devices:
                room_devices[name] = node.devices
    room = {"room_bytes": room_bytes, "room_millicores": millicores, "room_devices": room_devices}
    return observed.model_copy(update=room)


def without_route(observed: Observed) -> Observed:
    """What is observed once the serving route was withdrawn."""
    return observed.model_copy(update={"serving": None, "old_routes": ()})


def _next(inputs: PassInputs, course: Course | None, observed: Observed) -> Next | None:
    """The next steps towards a course; None where there is none."""
    if course is None or course.target is None:
        return None
    return Done() if inputs.unloaded else next_steps(course.target, observed, inputs.strategy)


def _hoped(observed: Observed, course: Course, avoided: Set[str]) -> Observed:
    """What the walk along a new course will go by. While a plan has a segment, it is hoped for, even on a node that is lost or fails it
    again and again; once none has it, it has failed, and a route with it gives its room away."""
    wanted = course.target.segments.keys() if course.target is not None else frozenset[str]()
    hopeless = {
        name: segment.model_copy(update={"phase": Phase.FAILED, "why": segment.why or "no plan has it"})
        for name, segment in observed.segments.items()
        if name not in wanted and segment.phase is Phase.STARTING and (segment.node not in observed.room_bytes or segment.node in avoided)
    }
    return observed.model_copy(update={"segments": {**observed.segments, **hopeless}}) if hopeless else observed


def exposed(route: Route, segments: Mapping[str, NamedSegment], nodes: Iterable[Node], rules: Constraints) -> Words:
    """Each segment of the route on a node that must not have one of its layers, in words; a node that is gone sees nothing."""
    trust = Constraints(trust=rules.trust)
    if not trust.trust:
        return ()
    by_name = {node.name: node for node in nodes}
    found: list[str] = []
    for name in sorted(route.names & segments.keys()):
        segment = segments[name]
        if (node := by_name.get(segment.node)) is not None:
            reasons = {forbidden(node, layer, trust) for layer in range(segment.start, segment.end)}
            found += [f"{name} on {node.name}: {reason}" for reason in sorted(filter(None, reasons))]
    return tuple(found)


def unexposed(route: Route, segments: Mapping[str, NamedSegment], nodes: Iterable[Node], rules: Constraints) -> Route | None:
    """The route without the pipelines that break a rule of privacy; None where none is left."""
    there = tuple(nodes)
    kept = tuple(names for names in route.pipelines if not exposed(Route(pipelines=(names,)), segments, there, rules))
    return Route(pipelines=kept) if kept else None


def _facts(inputs: PassInputs, question: Question, steps: Next | None) -> DecisionInputs:
    """All that a decision goes by."""
    course, observed = inputs.course, inputs.observed
    return question.facts.model_copy(
        update={
            "plan": course.plan if course else None,
            "plan_spec_digest": course.asked if course else "",
            "in_transition": steps is not None and not isinstance(steps, Done),
            "served": observed.serving is not None and all(observed.is_in(name, Phase.PROVEN) for name in observed.serving.names),
            "held_bytes": {name: observed.held_bytes(name) for name in sorted({segment.node for segment in observed.segments.values()})},
            "blocked": steps if isinstance(steps, Blocked) else None,
            "strategy": inputs.strategy,
        }
    )


def _adopted(inputs: PassInputs, decision: Adopt, memory: Memory, course: Course) -> PassPlan:
    steps = _next(inputs, course, _hoped(inputs.observed, course, inputs.avoided))
    return _allowed(PassPlan(decision, memory, course, steps), inputs)


def _allowed(planned: PassPlan, inputs: PassInputs) -> PassPlan:
    """Without a cutover to pipelines that break a rule of privacy, where no such route may be written; and what kept it from that."""
    if not inputs.stops_exposed or planned.course is None or planned.course.target is None or not isinstance(planned.steps, Steps):
        return planned
    segments = {**inputs.observed.segments, **planned.course.target.segments}
    actions: list[Action] = []
    why: list[str] = []
    for action in planned.steps.actions:
        broken = exposed(action.route, segments, inputs.nodes, planned.course.rules) if isinstance(action, Cutover) else ()
        why += broken
        if not broken:
            actions.append(action)
        elif isinstance(action, Cutover):
            left = unexposed(action.route, segments, inputs.nodes, planned.course.rules)
            actions += [Cutover(route=left, whole=False)] if left is not None and left != inputs.observed.serving else []
    return replace(planned, steps=Steps(actions=tuple(actions), waiting=(*planned.steps.waiting, *why)), exposed=tuple(why))
