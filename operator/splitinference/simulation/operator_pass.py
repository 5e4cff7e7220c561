"""The simulated operator: reads what can be observed, has the core decide, and takes the walk's next steps. One pass at a time."""

from datetime import datetime, timedelta

import simpy

from splitinference.controller.reconcile.planning.plan_pass import Course, PassInputs, PassPlan, Question, exposed, plan_pass, with_room
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory, Mode, StageTime
from splitinference.core.decide.early_load_signal import SLOWER, slower
from splitinference.core.decide.metrics_settling import settling
from splitinference.core.transition.state import Observed, Phase, Route, Target
from splitinference.core.transition.steps import CreateSegment, Cutover, DeleteSegment, Steps
from splitinference.core.values.plan import Pipeline, Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits
from splitinference.simulation.measuring import Windows
from splitinference.simulation.policies import Conduct
from splitinference.simulation.system.gateway import Gateway
from splitinference.simulation.system.observation import Observation, moment
from splitinference.simulation.system.places import Places
from splitinference.simulation.system.records import Moved, Records
from splitinference.simulation.system.routes import Routes
from splitinference.simulation.system.segments import Run, Segments
from splitinference.simulation.system.stepping import RECENT_SECONDS
from splitinference.simulation.system.world import Process
from splitinference.simulation.traces.trace import Trace

SPACING_S = 0.2
"""At least so long between two passes."""
WALKING_S = 1.0
"""While a walk is under way, a pass at least so often."""
LIMITS = Limits(seconds=120.0)
"""Far longer than any solve takes: the time limit must not decide what the plan is, or a busy machine would change the result."""


_ASKED = "trace"
"""What plans are made for: a trace's specification does not change."""


class NoPlanError(Exception):
    """There is no plan to start with; the message says why."""


class Operator:
    """Drives the core. `wake` asks for a pass soon."""

    def __init__(self, env: simpy.Environment, trace: Trace, conduct: Conduct, records: Records) -> None:
        self._env = env
        self._trace = trace
        self._conduct = conduct
        self._records = records
        self._woken = env.event()
        self._memory = Memory()
        self._windows = Windows(trace.observing.traffic_window_s)
        self._moves: list[datetime] = []
        self._lost: dict[str, str] = {}
        self._walking = False
        self._settled: tuple[object, ...] | None = None
        self._observation: Observation
        self._segments: Segments
        self._routes: Routes
        self._gateway: Gateway
        self._places: Places
        self._course: Course | None = None

    @property
    def plan(self) -> Plan:
        """The plan in force, once `start` has made one."""
        assert self._course is not None  # noqa: S101 - what `start` ensures
        return self._course.plan

    @property
    def target(self) -> Target | None:
        """The plan in force as named segments."""
        return self._course.target if self._course is not None else None

    @property
    def problem(self) -> Problem:
        """What the plan would be made from now."""
        return self._problem(self.plan)

    def wake(self) -> None:
        """Something may have changed."""
        if not self._woken.triggered:
            self._woken.succeed()

    def start(self, observation: Observation, segments: Segments, routes: Routes, gateway: Gateway, places: Places) -> None:
        """Make the first plan. The trace begins when it serves. Raises NoPlanError."""
        self._observation, self._segments, self._routes, self._gateway, self._places = observation, segments, routes, gateway, places
        made = self._planned(self._facts())
        if isinstance(made.decision, Keep):
            raise NoPlanError(made.decision.message)
        target = segments.target(self.plan)
        for named in target.segments.values():
            segments.runs[named.name] = Run(named, segments.segment(named.name), Phase.PROVEN, alive=True)
        routes.cutover(target.route)
        self._env.process(self._passes())

    def _passes(self) -> Process:
        while True:
            yield self._woken | self._env.timeout(WALKING_S if self._walking else self._trace.observing.pass_s)
            self._woken = self._env.event()
            self._pass()
            yield self._env.timeout(SPACING_S)

    def _pass(self) -> None:
        self._segments.prove()
        self._judge_nodes()
        if (serving := self._routes.serving) is not None and self._exposed(serving):
            # As with `onViolation: Stop`, the operator's default: nothing is sent there any more.
            self._routes.withdraw()
        seen = self._seen()
        if not self._walking and seen == self._settled:
            # The same facts give the same answer: time alone only matters while something is watched, and nothing is.
            return
        self._records.passes += 1
        facts, before = self._facts(), self.plan
        made = self._planned(facts)
        if isinstance(made.decision, Adopt) and made.decision.plan.revision != before.revision:
            self._moved(made.decision, facts.now)
        self._act(made)
        kept = made.decision if isinstance(made.decision, Keep) else None
        optional = kept is not None and (kept.trigger is None or not kept.trigger.mandatory)
        self._records.blocked += optional and kept is not None and kept.reason is Kept.BLOCKED
        looked = self._conduct.policy.mode is Mode.FROZEN or self._memory.reviewed == facts.now
        watched = self._memory.watches or self._memory.slowed or self._memory.stabilizing
        waits = watched or settling(self._memory, facts, self._conduct.policy)
        self._settled = seen if optional and looked and not waits else None

    def _planned(self, facts: DecisionInputs) -> PassPlan:
        """The operator's own pass, over what the simulation shows."""
        inputs = PassInputs(
            observed=self._observed(),
            strategy=self._trace.strategy,
            course=self._course,
            nodes=facts.problem.snapshot.nodes,
            stops_exposed=True,
            question=Question(facts, self._conduct.policy, self._memory, LIMITS),
            avoided=frozenset(self._lost),
        )
        made = plan_pass(inputs, self._conduct.solve, self._named)
        self._memory = made.memory or self._memory
        self._course, self._walking = made.course, made.in_transition
        return made

    def _named(self, plan: Plan) -> Course:
        """A plan with its segments; the trace's rules hold for all."""
        return Course(plan, self._segments.target(plan), _ASKED, self._trace.problem.constraints)

    def _problem(self, plan: Plan | None) -> Problem:
        serving = () if plan is None else tuple((*s.held, node) for s in plan.segments for node in s.nodes)
        return self._conduct.sees(self._trace.problem.model_copy(update={"snapshot": self._observation.snapshot(), "serving": serving}))

    def _facts(self) -> DecisionInputs:
        now, serving = moment(self._env.now), self._routes.serving
        self._moves = [at for at in self._moves if now - at < timedelta(hours=1)]
        return DecisionInputs(
            now=now,
            problem=self._problem(self._course.plan if self._course is not None else None),
            plan=self._course.plan if self._course is not None else None,
            plan_spec_digest=_ASKED,
            spec_digest=_ASKED,
            quarantined=dict(self._lost),
            moves=tuple(self._moves),
            traffic=self._gateway.traffic(),
            stages=self._stages(serving),
            measured_windows=self._measured(serving),
            serving=self._serving_plan(serving) if serving is not None else None,
        )

    def _stages(self, serving: Route | None) -> tuple[StageTime, ...]:
        """What the gateway saw of the plan's stages lately; nothing on the way to the plan. Times are the model's own: no factor is off."""
        if serving is None or serving != self._route:
            return ()
        found = []
        for segment in self.plan.segments:
            key = (segment.node, segment.processor, segment.start, segment.end)
            if (seen := self._places.steps.get(key)) is not None and (times := seen.quartile(self._env.now)) is not None:
                found.append(
                    StageTime(
                        node=segment.node,
                        processor=segment.processor,
                        start=segment.start,
                        end=segment.end,
                        alone_ms=max(times[0], 1e-6),
                        steps=times[1],
                        age_seconds=RECENT_SECONDS,
                    )
                )
        return tuple(found)

    @property
    def _route(self) -> Route | None:
        """The plan's own route."""
        return self._course.target.route if self._course is not None and self._course.target is not None else None

    def _measured(self, serving: Route | None) -> int:
        """Windows in which all stages of the plan computed, since its route serves."""
        route, now = self._route, self._env.now
        if route is None or serving != route:
            return self._windows.look(now, None, ())
        found = ((name, self._segments.segment(name)) for name in route.names)
        keys = ((name, (s.node, s.processor, s.start, s.end)) for name, s in found)
        recent = ((name, self._places.steps.get(key)) for name, key in keys)
        return self._windows.look(now, route, [name for name, steps in recent if steps is not None and steps.quartile(now) is not None])

    def _serving_plan(self, route: Route) -> Plan:
        """What the route serves, as a plan."""
        pipelines = (tuple(self._segments.segment(name) for name in pipeline) for pipeline in route.pipelines)
        share = 1.0 / len(route.pipelines)
        return Plan(model_digest=self.plan.model_digest, pipelines=tuple(Pipeline(segments=found, share=share) for found in pipelines))

    def _seen(self) -> tuple[object, ...]:
        """What a decision depends on, besides time: equal answers mean that nothing has changed."""
        slo, traffic = self._trace.problem.slo, self._gateway.traffic()
        pairs = (
            (slo.time_to_first_token_ms, traffic.time_to_first_token_ms),
            (slo.time_per_output_token_ms, traffic.time_per_output_token_ms),
        )
        broken = tuple(None if limit is None or value is None else value > limit for limit, value in pairs)
        stages = self._stages(self._routes.serving)
        slow = tuple(node for node, ratio in slower(self._problem(self.plan), stages).items() if ratio >= SLOWER) if stages else ()
        return (self._observation.version, self._segments.version, broken, slow, tuple(self._lost), self.plan.revision)

    def _moved(self, decision: Adopt, now: datetime) -> None:
        """Note that another plan was adopted."""
        self._records.moves.append(
            Moved(
                at_s=self._env.now,
                change=decision.change.value,
                reason=decision.reason.value,
                mandatory=decision.mandatory,
                message=decision.message,
                bytes_=decision.plan.prediction.moved_bytes if decision.plan.prediction else 0,
            )
        )
        self._moves.append(now)

    def _act(self, made: PassPlan) -> None:
        """Take the steps."""
        for action in made.steps.actions if isinstance(made.steps, Steps) else ():
            match action:
                case CreateSegment(segment=segment):
                    self._segments.create(segment)
                case DeleteSegment(name=name):
                    self._segments.delete(name)
                case Cutover(route=route):
                    self._routes.cutover(route)
                    self.wake()

    def _exposed(self, route: Route) -> bool:
        """Whether a layer of the route is where a rule of privacy does not let it be."""
        problem = self._problem(None)
        segments = {name: run.named for name, run in self._segments.runs.items()}
        return bool(exposed(route, segments, problem.snapshot.nodes, problem.constraints))

    def _observed(self) -> Observed:
        lost, snapshot = dict(self._lost), self._observation.snapshot()
        for node in snapshot.nodes:
            if not node.ready:
                lost.setdefault(node.name, f"{node.name} is not ready")
        wanted = self._course.target.segments if self._course is not None and self._course.target is not None else {}
        observed = Observed(
            segments=self._segments.observed(lost, frozenset(wanted)), serving=self._routes.serving, old_routes=self._routes.old_routes()
        )
        usable = tuple(node for node in snapshot.nodes if node.name not in lost)
        return with_room(observed, snapshot.model_copy(update={"nodes": usable}))

    def _judge_nodes(self) -> None:
        """A node whose segments steps do not get past is lost until its kubelet is back, as for the operator: the data path knows it before
        the node's condition says so."""
        observing, now = self._trace.observing, self._env.now
        for name in [n for n in self._routes.failing if n not in self._segments.runs or self._segments.runs[n].alive]:
            del self._routes.failing[name]
        for name, since in self._routes.failing.items():
            if now - since >= observing.failing_s:
                self._lost.setdefault(self._segments.runs[name].named.node, f"steps into it get no answer for {observing.failing_s:g} s")
        for node in [node for node in self._lost if self._observation.is_back(node)]:
            del self._lost[node]
