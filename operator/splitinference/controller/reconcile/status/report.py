"""What a pass found and did → status and events: each condition with its reason and numbers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from splitinference.controller.api.conditions import (
    Condition,
    Decision,
    Kind,
    conditions,
    decisions,
    judged,
    stamp,
)
from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.figures.trusted_samples import names
from splitinference.controller.plan_io.adapter_status import Outcome
from splitinference.controller.plan_io.columns import duration, latency, nodes, observed, spent_of
from splitinference.controller.plan_io.plan_status import Built, Planned, write_plan
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.planning.scaling import ScalingOutcome
from splitinference.controller.reconcile.status.filtered import filtered
from splitinference.controller.reconcile.status.move_outcome import Verdict
from splitinference.controller.reconcile.status.pipelines import pipelines_of, scale_of, scaled, whole
from splitinference.controller.reconcile.status.start_problems import gateway_words, hindered_segments
from splitinference.controller.spec_to_core.plan_constraints import trust_used
from splitinference.controller.trust.trust_labels import trusted_labels
from splitinference.core.cost.fitting.learn import ENOUGH_WINDOWS
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.transition.state import Phase, Route
from splitinference.core.transition.steps import Action, Blocked, CreateSegment, Cutover, DeleteSegment, Done, Steps
from splitinference.core.values.plan import Plan, Prediction
from splitinference_modelfiles import sealed
from splitinference_modelfiles.stored.digests import MISMATCH

NAME_TAKEN = "NameTaken"
NOT_STARTING = "SegmentNotStarting"
GATEWAY_STUCK = "GatewayNotStarting"
_SILENT = (Kept.STEADY, Kept.CONFIRMING, Kept.SETTLING)


@dataclass(frozen=True)
class Report:
    """What a pass has to say. `resource`: the spec in force; `steps`: where the walk is; `refused`: what the API server did not take;
    `taken`: objects of others that have a name of ours; `restored`: what others deleted or changed; `measuring`: nodes that a first plan
    waits for; `proposal`: the plan that is offered for approval; `unloaded`: no pipeline serves, because nobody asked for a while;
    `preempted`: none serves, because another resource needs the memory, in words."""

    seen: Seen
    accepted: Condition
    resource: Resource | None = None
    planned: Planned | None = None
    built: Built | None = None
    decision: Adopt | Keep | None = None
    steps: Steps | Done | Blocked | None = None
    serving: Route | None = None
    proofs: frozenset[str] = frozenset()
    refused: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    endpoint: str = ""
    exposed: tuple[str, ...] = ()
    verdict: Verdict | None = None
    measuring: tuple[str, ...] = ()
    verified: Condition | None = None
    proposal: Mapping[str, Any] = field(default_factory=dict)
    scaling: ScalingOutcome | None = None
    unloaded: bool = False
    preempted: str = ""
    adapters: Outcome | None = None

    @property
    def new_decision(self) -> Decision | None:
        """The decision, if it is one to remember."""
        found, revision = self.decision, self.built.target.route.revision if self.built else ""
        match found:
            case Adopt():
                return Decision(time=self.seen.now, reason=found.reason, message=found.message, transition=found.change, revision=revision)
            case Keep(reason=reason, message=message) if reason not in _SILENT:
                return Decision(time=self.seen.now, reason=reason, message=message, transition="keep", revision=revision)
        return None


def status_of(report: Report) -> dict[str, Any]:
    """The whole status after the pass."""
    seen, before = report.seen, report.seen.status
    generation = int(seen.body["metadata"].get("generation", 0))
    written: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": conditions(before.get("conditions") or [], all_conditions(report), generation, seen.now),
        **_memory_of(report),
        **scale_of(seen.owner[1], report.serving, _phases(report)),
    }
    if report.planned is None:
        return written
    if report.built is None or report.planned.plan.prediction is None:
        return written | {name: before[name] for name in _OF_THE_PLAN if name in before}
    return written | _plan_of(report, report.planned, report.built, report.planned.plan.prediction)


def _phases(report: Report) -> dict[str, Phase]:
    return {pod.name: pod.segment.phase for pod in report.seen.segments}


def _memory_of(report: Report) -> dict[str, Any]:
    """What later passes must know of earlier ones. What is empty is left out."""
    seen, before = report.seen, report.seen.status
    made = decisions(before.get("decisions") or [], report.new_decision)
    if report.verdict is not None and report.verdict.outcome:
        made = judged(made, report.verdict.revision, report.verdict.outcome)
    found: dict[str, Any] = {
        "decisions": made,
        "operator": before.get("operator"),
        "adaptation": seen.recall.model_copy(update={"proofs": tuple(sorted(report.proofs))}).as_status(),
        "calibration": seen.calibration.as_status(),
        "proposal": dict(report.proposal),
        "scaling": _scaling_of(report),
        "adapters": _adapters_of(report),
    }
    return {name: value for name, value in found.items() if value}


def _scaling_of(report: Report) -> Mapping[str, Any] | None:
    """status.scaling: as of now, or as before where this pass could not look at the load."""
    if report.scaling is not None:
        return report.scaling.status
    scales = (report.seen.body.get("spec") or {}).get("scaling")
    return report.seen.status.get("scaling") if scales else None


def _adapters_of(report: Report) -> list[Any]:
    """status.adapters: as of now, or as before where this pass did not look at them."""
    if report.adapters is not None:
        return [found.as_status() for found in report.adapters.adapters.values()]
    return list(report.seen.status.get("adapters") or ())


def _adapters_ready(report: Report) -> Iterator[Condition]:
    if report.adapters is not None:
        yield from filter(None, (report.adapters.condition,))
        return
    for old in report.seen.status.get("conditions") or ():
        if old.get("type") == Kind.ADAPTERS_READY:
            holds = {"True": True, "False": False}.get(str(old.get("status")))
            yield Condition(kind=Kind.ADAPTERS_READY, holds=holds, reason=str(old.get("reason")), message=str(old.get("message", "")))


def _plan_of(report: Report, planned: Planned, built: Built, prediction: Prediction) -> dict[str, Any]:
    """The plan, what serves, and how far the walk to the plan is."""
    phases = _phases(report)
    names = list(built.target.segments)
    written: dict[str, Any] = {
        "plan": write_plan(planned, built, phases),
        "segments": f"{sum(phases.get(name) is Phase.PROVEN for name in names)}/{len(names)}",
        "pipelines": pipelines_of(built.target, report.serving, phases),
        "predicted": duration(prediction.latency_ms),
        **({"cost": spent} if (spent := spent_of(prediction)) else {}),
        **(_traffic_of(report, report.serving) if report.serving is not None else {}),
    }
    if report.endpoint:
        written["endpoint"] = report.endpoint
    if isinstance(report.steps, Steps):
        written["transition"] = {
            "to": built.target.route.revision,
            **({"from": report.serving.revision} if report.serving is not None else {}),
            "steps": [describe(action) for action in report.steps.actions],
            "waiting": list(report.steps.waiting),
        }
    return written


def _traffic_of(report: Report, serving: Route) -> dict[str, Any]:
    """Where the route leads, and what clients get over it."""
    seen = report.seen
    written: dict[str, Any] = {"nodes": nodes(serving, {pod.name: pod.segment.node for pod in seen.segments})}
    traffic = seen.report.observed if seen.report and seen.report.revision == serving.revision else None
    if figures := observed(seen.status.get("observed") or {}, traffic, serving.revision, seen.now):
        written["observed"] = figures
    if report.resource and (shown := latency(figures, report.resource.spec.workload.output_tokens)):
        written["latency"] = shown
    return written


_OF_THE_PLAN = ("plan", "segments", "pipelines", "predicted", "cost", "nodes", "observed", "latency", "endpoint", "transition")


def all_conditions(report: Report) -> Iterator[Condition]:
    """Every condition that holds or does not."""
    planned, progressing, ready = _planned(report), _progressing(report), _ready(report)
    yield report.accepted
    yield planned
    yield _metrics(report)
    yield progressing
    yield ready
    if (
        report.resource is not None
        and (trusted := trusted_labels(report.resource.spec.privacy.rules, trust_used(report.resource.spec))) is not None
    ):
        yield trusted
    if report.verified is not None:
        yield report.verified
    elif report.resource is not None and report.resource.spec.verification is not None:
        yield from _verified_before(report)
    if report.resource is not None and report.resource.spec.filter is not None:
        yield filtered(report.resource.spec.filter, report.seen.report)
    if report.resource is not None and report.planned is not None:
        spec, has = report.resource.spec, len(report.planned.plan.pipelines)
        # For throughput nobody asks for a number: as many as fit are what is wanted.
        asked = has if spec.objective.goal == "throughput" else spec.replicas
        serves = len(whole(report.serving, _phases(report)))
        shown = scaled(asked, has, serves, report.decision, report.seen.status.get("conditions") or [])
        yield from (shown,) if shown is not None and not report.unloaded and not report.preempted else ()
    if report.scaling is not None:
        yield report.scaling.condition
    yield from _adapters_ready(report)
    stuck = [c for c in (report.accepted, planned) if c.holds is False] + (
        [progressing] if progressing.reason in ("Blocked", NAME_TAKEN, Reason.PREEMPTED) else []
    )
    if stuck:
        yield Condition(kind=Kind.STALLED, holds=True, reason=stuck[0].reason, message=stuck[0].message)
    elif progressing.holds:
        yield Condition(kind=Kind.RECONCILING, holds=True, reason=progressing.reason, message=progressing.message)


def _verified_before(report: Report) -> Iterator[Condition]:
    """While a transition is under way nothing new is known of verifiers."""
    message = "verifiers are checked again when the plan serves"
    yield Condition(kind=Kind.VERIFIED, holds=None, reason="TransitionUnderWay", message=message)


def _planned(report: Report) -> Condition:
    kind = Kind.PLANNED
    if isinstance(report.decision, Keep) and (trigger := report.decision.trigger) is not None and trigger.mandatory:
        if trigger.reason in (Reason.TRANSITION_BLOCKED, Reason.PIPELINES_MISSING) and report.planned is not None:
            # There is a plan, and it is right; Progressing or Scaled says what is in its way, and the decision that there is no way around.
            return _is_planned(report, report.planned.plan)
        return Condition(kind=kind, holds=False, reason=report.decision.reason, message=report.decision.message)
    if report.planned is None:
        if report.measuring:
            message = f"nodes are measured before the first plan is made: {names(report.measuring)}"
            return Condition(kind=kind, holds=None, reason="MeasuringNodes", message=message)
        return Condition(kind=kind, holds=None, reason="NoPlan", message="there is no plan yet")
    if report.accepted.holds is not True:
        return Condition(kind=kind, holds=True, reason="EarlierPlan", message="the plan was made for an earlier spec")
    return _is_planned(report, report.planned.plan)


def _is_planned(report: Report, plan: Plan) -> Condition:
    where = " ".join(f"{s.node}[{s.start}:{s.end}]" for s in plan.segments)
    proof = "proven best for these figures" if plan.optimal else "" if plan.gap is None else f"within {plan.gap:.1%} of the best"
    message = ", ".join(filter(None, (where, proof, _basis(plan, report))))
    return Condition(kind=Kind.PLANNED, holds=True, reason="Planned", message=message)


def _basis(plan: Plan, report: Report) -> str:
    """Of which of the plan's nodes the figures are measured, labelled or assumed."""
    found: dict[str, list[str]] = {}
    used = {name for segment in plan.segments for name in segment.nodes}
    for node in report.seen.reading.snapshot.nodes:
        if node.name in used and node.figures:
            found.setdefault(node.figures, []).append(node.name)
    if not found:
        return ""
    if len(found) == 1:
        return f"figures of its nodes are {next(iter(found))}"
    return "figures of its nodes are " + ", ".join(f"{basis} ({names(those)})" for basis, those in sorted(found.items()))


def _metrics(report: Report) -> Condition:
    measured, kind = report.seen.measured, Kind.METRICS_AVAILABLE
    stays = "the plan keeps serving, and no optional move is made"
    if measured.problem:
        reason = measured.reason or "MetricsUnavailable"
        return Condition(kind=kind, holds=False, reason=reason, message=f"{measured.problem}; {stays}")
    found, notes = measured.coverage, report.seen.reading.notes
    if found.nodes and not found.known:
        if found.unmatched:
            message = (
                f"Prometheus has CPU figures of {names(found.unmatched)}, and none of them is a node here ({names(found.without)}); {stays}"
            )
            return Condition(kind=kind, holds=False, reason="NodesNotMatched", message=message)
        message = f"Prometheus has no CPU figure of any of the {found.nodes} nodes ({names(found.without)}): {_NO_FIGURES}; {stays}"
        return Condition(kind=kind, holds=None, reason="NoFigures", message=message)
    message = "; ".join(filter(None, (found.words, *notes)))
    return Condition(kind=kind, holds=True, reason="Doubtful" if notes else "Available", message=message)


_NO_FIGURES = "does it scrape node-exporter or, with the query set cadvisor, the kubelets' cAdvisor, and has it done so at least twice?"


_UNLOADED = "no pipeline serves because no request has come for a while; the next request is held and starts one"


def _progressing(report: Report) -> Condition:
    kind = Kind.PROGRESSING
    if report.taken:
        return Condition(kind=kind, holds=False, reason=NAME_TAKEN, message="; ".join(dict.fromkeys(report.taken)))
    if report.refused:
        return Condition(kind=kind, holds=True, reason="Refused", message="; ".join(report.refused))
    if report.accepted.holds is True and (hindered := hindered_segments(report.seen)):
        known = (reason for reason in (MISMATCH, *sealed.REASONS) if any(reason in words for words in hindered))
        reason = next(known, NOT_STARTING)
        return Condition(kind=kind, holds=True, reason=reason, message="; ".join(hindered))
    match report.steps:
        case Steps(actions=actions, waiting=waiting):
            return Condition(kind=kind, holds=True, reason="Transition", message="; ".join([*map(describe, actions), *waiting]))
        case Blocked(why=why):
            return Condition(kind=kind, holds=False, reason="Blocked", message=why)
        case Done() if gateway := gateway_words(report.seen):
            message = f"the plan serves, but pods of the gateway do not start: {'; '.join(gateway)}"
            return Condition(kind=kind, holds=True, reason=GATEWAY_STUCK, message=message)
        case Done() if report.preempted:
            return Condition(kind=kind, holds=False, reason=Reason.PREEMPTED, message=report.preempted)
        case Done() if report.unloaded:
            return Condition(kind=kind, holds=False, reason="Unloaded", message=_UNLOADED)
        case Done():
            return Condition(kind=kind, holds=False, reason="Settled", message=f"the plan serves{_stabilizing(report)}")
    if report.accepted.holds is None:
        return Condition(kind=kind, holds=True, reason=report.accepted.reason, message=report.accepted.message)
    return Condition(kind=kind, holds=False, reason="NothingToDo", message="")


def _stabilizing(report: Report) -> str:
    """That optional moves wait after a mandatory one, and until when at the latest."""
    window = report.seen.recall.memory.stabilizing
    if window is None or report.resource is None:
        return ""
    latest = f", at the latest at {stamp(window.since + report.resource.spec.adaptation.stabilization)}" if window.since else ""
    return f"; optional moves wait until its stages have been measured for {ENOUGH_WINDOWS} windows{latest}"


def _ready(report: Report) -> Condition:
    kind = Kind.READY
    if report.taken:
        return Condition(kind=kind, holds=False, reason=NAME_TAKEN, message="; ".join(dict.fromkeys(report.taken)))
    if report.preempted:
        return Condition(kind=kind, holds=False, reason=Reason.PREEMPTED, message=f"no pipeline serves: {report.preempted}")
    if report.unloaded and any(_is_ready(pod) for pod in report.seen.gateways):
        return Condition(kind=kind, holds=True, reason="Unloaded", message=_UNLOADED)
    if report.serving is None:
        if report.exposed or report.seen.stopped:
            why = "; ".join(report.exposed) or "a route that satisfies the rules is being prepared"
            return Condition(kind=kind, holds=False, reason="StoppedForPrivacy", message=f"nothing is sent to any segment: {why}")
        causes = [*report.refused, *hindered_segments(report.seen), *gateway_words(report.seen)]
        return Condition(kind=kind, holds=False, reason="NotServing", message="; ".join(["no route serves yet", *causes]))
    phases = {pod.name: pod.segment for pod in report.seen.segments}
    missing = [
        f"{name} is {phases[name].phase.lower()}" + (f" ({phases[name].why})" if phases[name].why else "")
        if name in phases
        else f"{name} is missing"
        for pipeline in report.serving.pipelines
        for name in pipeline
        if name not in phases or phases[name].phase is not Phase.PROVEN
    ]
    complete = len(whole(report.serving, _phases(report)))
    if missing and not complete:
        return Condition(kind=kind, holds=False, reason="SegmentsNotReady", message="; ".join([*missing, *report.refused]))
    if not any(_is_ready(pod) for pod in report.seen.gateways):
        message = "all segments serve, but no gateway pod is ready"
        causes = [*(words for words in report.refused if "gateway" in words), *gateway_words(report.seen)]
        return Condition(kind=kind, holds=False, reason="GatewayNotReady", message="; ".join([message, *causes]))
    if report.restored:
        return Condition(kind=kind, holds=False, reason="ObjectsMissing", message="; ".join(report.restored))
    if missing:
        message = "; ".join([f"{complete} of {len(report.serving.pipelines)} pipelines serve", *missing])
        return Condition(kind=kind, holds=True, reason="Serving", message=message)
    message = f"{len(report.serving.names)} segments serve, each proven by an inference"
    return Condition(kind=kind, holds=True, reason="Serving", message=message)


def _is_ready(pod: Mapping[str, Any]) -> bool:
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in (pod.get("status") or {}).get("conditions") or [])


def describe(action: Action) -> str:
    """An action in words."""
    match action:
        case CreateSegment(segment=segment):
            return f"create {segment.name} on {segment.node}"
        case Cutover(route=route, whole=whole):
            return f"cut over to route {route.revision}" + ("" if whole else ", an intermediate route")
        case DeleteSegment(name=name, why=why):
            return f"delete {name}: {why}"
