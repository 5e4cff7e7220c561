"""A simulated cluster as a source: the operator's own decisions on a trace, played at a multiple of real time.

Shows the page without a cluster, and drives its tests. The document has the form that a live cluster's has.
"""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.core.cost.link import Links
from splitinference.core.cost.predict import predict
from splitinference.core.transition.state import NamedSegment, Phase
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.simulation.policies import PolicyName
from splitinference.simulation.run import Simulation, prepare
from splitinference.simulation.system.observation import moment
from splitinference.simulation.traces.trace import Trace
from splitinference.ui.page.document import Document, Item, rounded
from splitinference.ui.page.figures import MOST_LINKS
from splitinference.ui.page.resources import Load, resource_item
from splitinference.ui.questions.asked import Basis, UnanswerableError
from splitinference.view import ConditionView, DecisionView, LinkView, PipelineView, PlanView, ResourceView, SegmentView, TrafficView
from splitinference.view.model import HeldView, NodeView

MIB = 2.0**20
NAMESPACE = "simulation"
MOST_DECISIONS = 10
STEP_SECONDS = 60.0
"""Of simulated time at most in one go, so that `close` and a what-if need not wait for a whole day."""


@dataclass
class Simulated:
    """Implements `Source`. Each `read` lets pass what has passed on the clock, `speed` times; with a speed of 0 only `advance` does."""

    trace: Trace
    policy: PolicyName = PolicyName.ADAPTIVE
    seed: int = 1
    speed: float = 60.0
    _made: Simulation = field(init=False, repr=False)
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _clock: float = field(init=False, repr=False, default_factory=time.monotonic)
    _seen_requests: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        """Raises NoPlanError where the trace has no plan to begin with."""
        self._made = prepare(self.trace, self.policy, self.seed)

    @property
    def key(self) -> str:
        """The one resource."""
        return f"{NAMESPACE}/{self.trace.name}"

    @property
    def seconds(self) -> float:
        """Simulated seconds since the start."""
        return float(self._made.env.now)

    def advance(self, seconds: float) -> None:
        """Let simulated time pass, to the end of the trace at most."""
        with self._lock:
            self._advance(seconds)

    def _advance(self, seconds: float) -> None:
        env = self._made.env
        until = min(env.now + seconds, self.trace.duration_s)
        while env.now < until:
            env.run(until=min(env.now + STEP_SECONDS, until))

    def read(self) -> Document:
        """The state after the time that has passed."""
        with self._lock:
            now = time.monotonic()
            if self.speed > 0:
                self._advance((now - self._clock) * self.speed)
            self._clock = now
            return self._document()

    def basis(self, key: str) -> Basis:
        """What the simulated operator would plan from now."""
        if key != self.key:
            raise UnanswerableError(f"There is no resource {key[:200]} in this simulation.")
        with self._lock:
            return Basis(self._made.operator.problem, self._made.operator.plan)

    def close(self) -> None:
        """Nothing is held."""

    def _document(self) -> Document:
        made = self._made
        problem, plan = made.operator.problem, made.operator.plan
        snapshot, at = made.observation.snapshot(), moment(made.env.now)
        over = made.env.now >= self.trace.duration_s
        played = f"This is a simulation of {self.trace.name}" + (f", {self.speed:g} times as fast as real time." if self.speed else ".")
        notes = (played, "The simulation has ended.") if over else (played,)
        return Document(
            read=at,
            nodes={node.name: self._node(node) for node in snapshot.nodes},
            resources={self.key: resource_item(self._resource(plan, problem), Load(made.routes.in_flight), _spec(problem))},
            links=self._links(plan, problem),
            notes=notes,
            kind="simulation",
        )

    def _resource(self, plan: Plan, problem: Problem) -> ResourceView:
        made, target = self._made, self._made.operator.target
        named = [segment for pipeline in target.pipelines for segment in pipeline] if target else []
        serving = made.routes.serving
        wanted = {segment.name for segment in named}
        phases = {name: run.phase for name, run in made.segments.runs.items()}
        leaving = tuple(_segment(run.named, run.phase.value) for name, run in made.segments.runs.items() if name not in wanted)
        chains = () if serving is None or target is None or serving == target.route else tuple(
            PipelineView(number=number, segments=tuple(self._served(name, number, stage) for stage, name in enumerate(names)
                                                       if name in made.segments.runs))
            for number, names in enumerate(serving.pipelines)
        )  # fmt: skip
        moving = serving is not None and target is not None and serving != target.route
        proven = sum(phases.get(segment.name) is Phase.PROVEN for segment in named)
        return ResourceView(
            namespace=NAMESPACE,
            name=self.trace.name,
            mode="Auto",
            goal=problem.objective.goal.value,
            model=problem.profile.model,
            plan=self._plan(plan, problem, named, phases),
            serving=chains,
            leaving=leaving,
            proven=f"{proven}/{len(named)}",
            traffic=self._traffic(),
            transition_from=serving.revision if moving and serving else "",
            transition_to=target.route.revision if moving and target else "",
            conditions=(self._ready(moving),),
            decisions=tuple(self._decisions()),
        )

    def _plan(self, plan: Plan, problem: Problem, named: list[NamedSegment], phases: dict[str, Phase]) -> PlanView:
        prediction = plan.prediction or predict(plan, problem)
        pipelines, at = [], 0
        for number, pipeline in enumerate(plan.pipelines):
            segments, links = [], []
            for stage_number, segment in enumerate(pipeline.segments):
                stage, name = prediction.stages[at], named[at]
                steps = self._made.places.steps.get((segment.node, segment.processor, *segment.held))
                seen = steps.quartile(self._made.env.now) if steps is not None else None
                segments.append(
                    SegmentView(
                        name=name.name,
                        pipeline=number,
                        stage=stage_number,
                        start=segment.start,
                        end=segment.end,
                        node=segment.node,
                        processor=segment.processor,
                        phase=phases[name.name].value if name.name in phases else "Missing",
                        weight_mib=stage.weight_bytes / MIB,
                        kv_mib=stage.kv_bytes / MIB,
                        memory_mib=stage.memory_bytes / MIB,
                        predicted_ms=stage.decode_ms,
                        prefill_ms=stage.prefill_ms,
                        observed_ms=seen[0] if seen else None,
                    )
                )
                links.append(LinkView(source=name.name, target="", predicted_ms=stage.link_ms))
                at += 1
            pipelines.append(PipelineView(number=number, segments=tuple(segments), links=tuple(links)))
        times = {
            "timeToFirstTokenMs": prediction.time_to_first_token_ms,
            "timePerOutputTokenMs": prediction.time_per_output_token_ms,
            "latencyMs": prediction.latency_ms,
            "tokensPerSecond": prediction.tokens_per_s,
        }
        return PlanView(
            revision=plan.revision,
            pipelines=tuple(pipelines),
            predicted=times,
            value=plan.value,
            bound=plan.bound,
            gap=plan.gap,
            optimal=plan.optimal,
            explanation=plan.explanation,
        )

    def _served(self, name: str, number: int, stage: int) -> SegmentView:
        run = self._made.segments.runs[name]
        return _segment(run.named, run.phase.value).model_copy(update={"pipeline": number, "stage": stage})

    def _traffic(self) -> TrafficView:
        seen = self._made.gateway.traffic()
        first, each = seen.time_to_first_token_ms, seen.time_per_output_token_ms
        return TrafficView(
            requests=seen.requests,
            failed=len(self._made.records.lost),
            window_seconds=self.trace.observing.traffic_window_s,
            first_token_ms={} if first is None else {"p95": first},
            next_token_ms={} if each is None else {"p95": each},
        )

    def _ready(self, moving: bool) -> ConditionView:
        serving = self._made.routes.serving
        if serving is None:
            return ConditionView(kind="Ready", status="False", reason="NotServing", message="no route serves", good=False)
        message = "the plan serves; a transition to a new plan is in progress" if moving else "the plan serves"
        return ConditionView(kind="Ready", status="True", reason="Serving", message=message)

    def _decisions(self) -> Iterator[DecisionView]:
        for moved in self._made.records.moves[: -MOST_DECISIONS - 1 : -1]:
            yield DecisionView(time=stamp(moment(moved.at_s)), transition=moved.change, reason=moved.reason, message=moved.message)

    def _node(self, node: Node) -> Item:
        runs = [run for run in self._made.segments.runs.values() if run.named.node == node.name]
        held = tuple(
            HeldView(namespace=NAMESPACE, resource=self.trace.name, segment=run.named.name, layers=f"{run.named.start}-{run.named.end}",
                     memory_mib=run.named.memory_bytes / MIB)
            for run in runs
        )  # fmt: skip
        ours = sum(run.named.memory_bytes for run in runs)
        view = NodeView(
            name=node.name, ready=node.ready, zone=node.zone, cores=node.cores, memory_mib=node.memory_free_bytes / MIB, held=held
        )
        return {
            **view.model_dump(mode="json", exclude={"labels", "used_by_others"}),
            "usedByOthers": rounded(node.utilization, 2),
            "usedByUs": None,
            "waiting": None,
            "excluded": node.excluded,
            "pressured": "",
            "figures": node.figures,
            "memoryMib": round(node.memory_free_bytes / MIB),
            "oursMib": round(ours / MIB),
            "freeMib": round(max(0, node.memory_free_bytes - ours) / MIB),
            "othersMib": 0,
        }

    def _links(self, plan: Plan, problem: Problem) -> dict[str, Item]:
        """Between the nodes that serve, by zones and defaults too; there may be a million others."""
        names = list(dict.fromkeys(name for segment in plan.segments for name in segment.nodes))
        links = Links(problem.snapshot.network, problem.snapshot.nodes)
        found: dict[str, Item] = {}
        for source in names:
            for target in names:
                if source != target and len(found) < MOST_LINKS:
                    quality = links.quality(source, target)
                    found[f"{source}→{target}"] = {
                        "source": source, "target": target,
                        "mbps": rounded(quality.bandwidth_bytes_per_s * 8 / 1e6, 1), "rttMs": rounded(quality.rtt_ms, 2),
                    }  # fmt: skip
        return found


def _spec(problem: Problem) -> dict[str, Any]:
    """Limits and rules as a resource would say them."""
    limits = {"timeToFirstToken": problem.slo.time_to_first_token_ms, "timePerOutputToken": problem.slo.time_per_output_token_ms}
    rules = [{"layers": f"{rule.start}:{rule.end}", "nodeLabels": dict(rule.labels)} for rule in problem.constraints.trust]
    return {"slo": {name: f"{limit:g}ms" for name, limit in limits.items() if limit is not None}, "privacy": {"rules": rules}}


def _segment(named: NamedSegment, phase: str) -> SegmentView:
    return SegmentView(name=named.name, start=named.start, end=named.end, node=named.node, phase=phase, memory_mib=named.memory_bytes / MIB)
