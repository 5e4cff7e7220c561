"""One pass for one SplitInference: read everything, decide purely, take the next steps, write the status, end.

A pass never waits, and takes nothing for granted that an earlier pass did: it may be killed between any two writes, and the next goes on.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from splitinference.controller.api.conditions import Condition, merge_patch
from splitinference.controller.api.sections.adaptation_spec import Prefetch
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.cluster_state.snapshot import Yielding
from splitinference.controller.plan_io.adapter_status import Outcome as AdapterOutcome
from splitinference.controller.plan_io.plan_status import Built, Planned, build
from splitinference.controller.ports import Listing, Manifest, Ports
from splitinference.controller.reconcile.executor import Walker
from splitinference.controller.reconcile.in_force import InForce, Remembered, read_in_force
from splitinference.controller.reconcile.planning.decision_inputs import calibrated, facts_of
from splitinference.controller.reconcile.planning.desired import Asked, read_asked
from splitinference.controller.reconcile.planning.gather import Looker, Seen
from splitinference.controller.reconcile.planning.plan_pass import Course, PassInputs, PassPlan, Question, confirmed, plan_pass
from splitinference.controller.reconcile.planning.preemption import Contest, gives_up, wants_more
from splitinference.controller.reconcile.planning.privacy import guarded, promised_rules, stops_exposed
from splitinference.controller.reconcile.planning.scaling import ScalingOutcome, is_unloaded, scaling_of, with_number
from splitinference.controller.reconcile.status.move_outcome import judge, promised
from splitinference.controller.reconcile.status.proposals import Offer, offer_after, read_offer, said_of, with_rejection
from splitinference.controller.reconcile.status.report import Report, events, status_of
from splitinference.controller.reconcile.unload import UNUSED, Unloading
from splitinference.controller.reconcile.upkeep.adapters import AdapterKeeper
from splitinference.controller.reconcile.upkeep.gateway_rollout import is_coming
from splitinference.controller.reconcile.upkeep.node_measuring import nodes_to_wait_for
from splitinference.controller.reconcile.upkeep.upkeep import Upkeep
from splitinference.controller.reconcile.upkeep.verification import without_trusted_node
from splitinference.controller.runtime.solve_throttle import Reviews
from splitinference.controller.spec_to_core.policy import policy, strategy
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import Mode
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.transition.steps import Done, Steps, Strategy
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.result import Limits, Outcome
from splitinference.settings import Settings

log = logging.getLogger(__name__)

WALKING_SECONDS = 1.0
_SCALING_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 30.0
"""What clients of a model that gave way are told to wait before they ask again."""
_PREEMPTED = "a resource of a higher priority needs the memory"
_MOST_DOUBLINGS = 5
"""What the API server refuses is tried again after 1, 2, 4 … 32 s."""


@dataclass(frozen=True)
class Looked:
    """How a pass ended. `gone`: there is no such resource; `again_seconds`: look again so soon if nothing wakes before, None as usual;
    `solved`: the solver was asked; `asleep`: the model is unloaded and nothing is under way."""

    gone: bool = False
    again_seconds: float | None = None
    solved: bool = False
    asleep: bool = False


@dataclass
class CountingSolver:
    """The solver, and how often it was asked."""

    solve: Solve
    times: int = 0

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        self.times += 1
        return self.solve(problem, limits, hint)


@dataclass
class Pass:
    """One pass over one resource, with what it has found out so far."""

    ports: Ports
    settings: Settings
    solve: CountingSolver
    body: Manifest
    resources: Listing
    remembered: Remembered
    sight: Sight
    reviews: Reviews
    crd_note: str = ""
    problem: Problem | None = None
    offer: Offer | None = None
    contest: Contest | None = None
    yielding: Yielding = field(default_factory=dict)
    given_up: str = ""
    named: dict[str, tuple[Planned, Built]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replicas = int((self.body.get("spec") or {}).get("replicas") or 1)
        self.body = with_number(self.body)
        self.unloaded = is_unloaded(self.body)
        self.upkeep = Upkeep(self.ports, self.settings, self.remembered.applied)

    @property
    def limits(self) -> Limits:
        """Of one solve."""
        return Limits(seconds=self.settings.solve_seconds)

    @property
    def looker(self) -> Looker:
        """Reads, for this resource."""
        return Looker(self.ports, self.settings, self.body, self.sight, self.remembered.told)

    def run(self) -> Looked:
        """The pass: gather, plan, act, report."""
        asked = read_asked(self.body, self.remembered.specs.read(self.body), self.ports.models, self.settings)
        force = read_in_force(self.ports, self.body, self.remembered, asked)
        seen, self.remembered.proofs = self.looker.look(self.resources, force.wanted, self.remembered.proofs)
        seen = self._adapters(asked, force, seen).held_back()
        asked = without_trusted_node(asked, seen)
        if isinstance(asked, Asked) or asked.holds is not False or force.planned is not None:
            self.upkeep.keep_secrets(self.body)
        if isinstance(asked, Asked) and force.planned is None and (report := self._waits_for_first(asked, seen)) is not None:
            return self._finish(report, WALKING_SECONDS)
        if isinstance(asked, Asked) and force.planned is not None and force.profile is not None:
            seen = guarded(self.ports, asked.resource, seen, promised_rules(force.planned, force.profile))
        self.contest = Contest.of(self.looker, seen, self.resources, self.settings.preemption)
        before, self.yielding = self.contest.seen, self.contest.yielding
        inputs, seen = self._inputs(asked, force, before)
        made = self._plan(inputs, asked)
        if wants_more(made) and self.solve.times and isinstance(asked, Asked):
            made, inputs, seen = self._preempt(asked, force, before) or (made, inputs, seen)
        self.given_up = gives_up(made)
        if made.memory is not None:
            seen = replace(seen, recall=seen.recall.model_copy(update={"memory": made.memory}))
        if isinstance(asked, Asked) and isinstance(made.decision, Adopt):
            made, force, seen = self._commit(made, inputs, asked, force, seen)
        return self._act(made, asked, force, seen)

    # --- gathering -------------------------------------------------------------------------------------------------------------------

    def _waits_for_first(self, asked: Asked, seen: Seen) -> Report | None:
        """What to say while the first plan waits for measured nodes, or for the gateway's place."""
        self.upkeep.keep_gateway(asked.resource, asked.profile, seen)
        if waits_for := nodes_to_wait_for(self.ports.benchmarks, asked.resource, seen, self.settings):
            return Report(seen=seen, accepted=asked.condition, resource=asked.resource, measuring=waits_for)
        if is_coming(self.ports, asked.resource, seen):
            return Report(seen=seen, accepted=asked.condition, resource=asked.resource)
        return None

    def _inputs(self, asked: Asked | Condition, force: InForce, seen: Seen) -> tuple[PassInputs, Seen]:
        """What the pass is planned from; and what is seen, with what observed stages taught."""
        question = None
        if isinstance(asked, Asked):
            seen, self.problem = calibrated(asked, force.planned, force.built, seen)
            self.offer = read_offer(self.body, asked, force.built)
            seen = with_rejection(seen, self.offer)
            facts = facts_of(asked, self.problem, force.planned, force.built, seen)
            if self.offer is not None and self.offer.approved:
                facts = facts.model_copy(update={"approved": self.offer.plan})
            moves = policy(asked.resource.spec.adaptation)
            # What is unloaded is moved for nobody; a node that is lost is a reason to plan anew still.
            moves = moves.model_copy(update={"mode": Mode.FROZEN}) if self.unloaded else moves
            question = Question(facts, moves, seen.recall.memory, self.limits)
        inputs = PassInputs(
            observed=seen.observed,
            strategy=strategy(force.resource.spec.adaptation) if force.resource is not None else Strategy.SURGE,
            course=force.course,
            nodes=seen.reading.snapshot.nodes,
            stops_exposed=force.resource is not None and stops_exposed(force.resource),
            question=question,
            avoided=frozenset(seen.recall.quarantined(seen.now)),
            unloaded=self.unloaded,
        )
        return inputs, seen

    # --- planning --------------------------------------------------------------------------------------------------------------------

    def _plan(self, inputs: PassInputs, asked: Asked | Condition) -> PassPlan:
        """Decide, with leave to look for a better plan where there is some."""
        question = inputs.question
        if question is None or not isinstance(asked, Asked):
            return plan_pass(inputs, self.solve, _nothing_to_name)
        now = question.facts.now
        leave = self.reviews.begin(now, confirming=Reason.BETTER_PLAN in question.memory.watches)
        inputs = replace(inputs, question=replace(question, facts=question.facts.model_copy(update={"may_review": leave})))
        try:
            return plan_pass(inputs, self.solve, partial(self._course, asked))
        finally:
            if leave:
                self.reviews.end(now, self.ports.clock.now(), solved=self.solve.times > 0)

    def _preempt(self, asked: Asked, force: InForce, before: Seen) -> tuple[PassPlan, PassInputs, Seen] | None:
        """A plan on memory that resources of a lower priority hold; None where even that is none. `before`: what was seen, before stages
        taught anything."""
        assert self.contest is not None  # noqa: S101 - it was made before the plan
        kept = self.problem, self.offer
        for yielding in self.contest.tries():
            reading = self.contest.seen_without(yielding).reading
            inputs, seen = self._inputs(asked, force, before.with_reading(reading))
            made = self._plan(inputs, asked)
            if isinstance(decision := made.decision, Adopt):
                self.yielding = yielding
                needs = {segment.node: segment.memory_bytes for segment in self.named[decision.plan.revision][1].target.segments.values()}
                message = f"{decision.message}; {self.contest.words(yielding, needs)}"
                return replace(made, decision=decision.model_copy(update={"message": message})), inputs, seen
        self.problem, self.offer = kept
        return None

    def _course(self, asked: Asked, plan: Plan) -> Course:
        """A plan for what is asked, with its segments."""
        known = self.named.get(plan.revision)
        if known is None or known[0].plan != plan:
            planned = Planned(plan=plan, resource=asked.resource, spec=self.body.get("spec") or {}, asked=asked.digest)
            known = self.named[plan.revision] = planned, build(planned, asked.profile, self.ports.builder)
        return Course(plan, known[1].target, asked.digest, asked.constraints)

    def _commit(self, made: PassPlan, inputs: PassInputs, asked: Asked, force: InForce, seen: Seen) -> tuple[PassPlan, InForce, Seen]:
        """Make it the plan, if no other resource's plan took the memory meanwhile. The plan is in the status before anything is done about
        it."""
        with self.ports.planning:
            resources = self.ports.cluster.split_inferences()
            reading = self.looker.read(seen.now, seen.nodes, seen.pods, seen.measured, resources, yielding=self.yielding)
            reading = self.looker.awaiting(reading, seen.recall, seen.now)
            made = confirmed(made, inputs, reading.snapshot)
            decision = made.decision
            if not isinstance(decision, Adopt):
                return made, force, seen
            planned, built = self.named[decision.plan.revision]
            # A first plan moves nothing, and may have been made while nodes unpacked our images: no cooldown keeps it from being mended.
            recall = seen.recall if decision.change in (Change.KEEP, Change.FIRST) else seen.recall.moved(seen.now)
            recall = promised(recall, decision, built.target.route.revision, seen.report.observed if seen.report else None)
            seen = replace(seen.with_reading(reading), recall=recall)
            self._write(
                Report(
                    seen=seen,
                    accepted=asked.condition,
                    resource=asked.resource,
                    planned=planned,
                    built=built,
                    decision=decision,
                    serving=seen.stored.route if seen.stored else None,
                )
            )
        log.info("%s/%s: %s: %s", *seen.owner, decision.reason, decision.message)
        # The decision is in the status now, so it is not reported again.
        return replace(made, decision=None), InForce(asked.resource, planned, asked.profile, built), replace(seen, body=self.body)

    # --- acting ----------------------------------------------------------------------------------------------------------------------

    def _act(self, made: PassPlan, asked: Asked | Condition, force: InForce, seen: Seen) -> Looked:
        report = Report(
            seen=seen,
            accepted=asked.condition if isinstance(asked, Asked) else asked,
            resource=force.resource,
            planned=force.planned,
            built=force.built,
            decision=said_of(self.offer, made.decision),
            serving=seen.stored.route if seen.stored else None,
            proposal=self._proposal(made, force, seen),
            scaling=self._scaling(asked, force, seen),
        )
        planned, built, profile, resource = force.planned, force.built, force.profile, force.resource
        if planned is None or built is None or profile is None or resource is None or made.steps is None:
            return self._finish(report, None)
        if self.unloaded or self.given_up:
            return self._unload(report, force, seen)
        if self.contest is not None:
            made = self.contest.held_back(made, self.yielding)
        self.upkeep.keep_services(built, seen)
        walker = Walker(self.ports, planned.resource, resource.spec.adaptation.drain.total_seconds(), built, seen)
        stored = walker.take(made.steps.actions) if isinstance(made.steps, Steps) else seen.stored
        self.upkeep.refused += walker.refused
        self.upkeep.taken += walker.taken
        # The gateway changes when its route does not: another model's tokenizer must not meet the segments of this one.
        if isinstance(made.steps, Done) or seen.stored is None or not seen.gateways:
            self.upkeep.keep_gateway(planned.resource, profile, seen)
        else:
            self.upkeep.restore_gateway(planned.resource, profile)
        self.upkeep.keep_budget(resource, stored)
        if isinstance(made.steps, Done) and self.problem is not None:
            likely = resource.spec.adaptation.prefetch is Prefetch.LIKELY_TARGETS
            self.upkeep.keep_prefetches(planned, profile, planned.plan if likely else None, self.problem, seen)
        verified = self._verify(force, report) if isinstance(made.steps, Done) else None
        adapters = self._keep_adapters(asked, force, seen)
        verdict = judge(seen, isinstance(made.steps, Done))
        report = replace(
            report,
            seen=replace(seen, recall=verdict.recall),
            verdict=verdict,
            steps=made.steps,
            serving=stored.route if stored else None,
            exposed=made.exposed,
            verified=verified,
            adapters=adapters,
            endpoint=self.ports.builder.endpoint(planned.resource),
        )
        under_way = isinstance(made.steps, Steps) or (adapters is not None and not adapters.settled)
        return self._finish(report, WALKING_SECONDS if under_way else None)

    def _unload(self, report: Report, force: InForce, seen: Seen) -> Looked:
        """Take the next steps to no segment at all; the gateway stays, and holds what comes."""
        planned, built, profile, resource = force.planned, force.built, force.profile, force.resource
        assert planned is not None and built is not None and profile is not None and resource is not None  # noqa: S101, PT018
        wakes = _ASK_AGAIN_SECONDS if self.given_up else report.scaling.start_seconds if report.scaling is not None else 0.0
        unloading = Unloading(self.ports, resource, seen, wakes, _PREEMPTED if self.given_up else UNUSED)
        steps = unloading.steps()
        walker = Walker(self.ports, planned.resource, resource.spec.adaptation.drain.total_seconds(), built, seen)
        walker.take(steps.actions if isinstance(steps, Steps) else ())
        self.upkeep.refused += walker.refused
        self.upkeep.taken += walker.taken
        self.upkeep.keep_gateway(planned.resource, profile, seen)
        self.upkeep.keep_budget(resource, None)
        endpoint = self.ports.builder.endpoint(planned.resource)
        report = replace(report, steps=steps, serving=None, unloaded=not self.given_up, preempted=self.given_up, endpoint=endpoint)
        looked = self._finish(report, None if self.given_up and isinstance(steps, Done) else WALKING_SECONDS)
        changes = report.scaling is not None and report.scaling.changed
        rests = isinstance(steps, Done) and not self.given_up and not changes
        return replace(looked, asleep=rests and not self.upkeep.refused and not self.upkeep.taken)

    def _scaling(self, asked: Asked | Condition, force: InForce, seen: Seen) -> ScalingOutcome | None:
        """How many pipelines the load needs: the next pass plans for it."""
        if not isinstance(asked, Asked) or self.problem is None:
            return None
        plan = force.planned.plan if force.planned is not None and force.planned.plan.model_digest == asked.profile.digest else None
        return scaling_of(asked.resource, self.replicas, seen.status, plan=plan, problem=self.problem, report=seen.report, now=seen.now)

    def _proposal(self, made: PassPlan, force: InForce, seen: Seen) -> Mapping[str, Any]:
        """The plan that is offered after the pass."""
        proposed = made.decision.proposal if isinstance(made.decision, Keep) else None
        named = self.named.get(proposed.revision) if proposed is not None else None
        return offer_after(self.offer, made.decision, named, seen, force.built)

    def _adapters(self, asked: Asked | Condition, force: InForce, seen: Seen) -> AdapterKeeper:
        """Of what is asked for; where that cannot be worked with, all stays as it is."""
        resource, retry = asked.resource if isinstance(asked, Asked) else None, timedelta(seconds=self.settings.profile_retry_seconds)
        return AdapterKeeper(self.ports, resource, seen, self.remembered.adapters, force.wanted, retry)

    def _keep_adapters(self, asked: Asked | Condition, force: InForce, seen: Seen) -> AdapterOutcome | None:
        keeper = self._adapters(asked, force, seen)
        if keeper.idle or force.profile is None:
            return None
        outcome = keeper.keep(force.profile)
        self.upkeep.refused += outcome.refused
        return outcome

    def _verify(self, force: InForce, report: Report) -> Condition | None:
        """Verifiers of a plan that serves; while a transition is under way they stay as they are."""
        if report.resource is None or self.problem is None or force.planned is None or force.built is None or force.profile is None:
            return None
        wanted, problem, seen = report.resource, self.problem, report.seen
        return self.upkeep.keep_verifiers(force.planned, force.built, profile=force.profile, wanted=wanted, problem=problem, seen=seen)

    # --- the end ---------------------------------------------------------------------------------------------------------------------

    def _finish(self, report: Report, again_seconds: float | None) -> Looked:
        self._write(report)
        if report.scaling is not None:
            again_seconds = WALKING_SECONDS if report.scaling.changed else min(again_seconds or _SCALING_SECONDS, _SCALING_SECONDS)
        doubted = bool(self.remembered.proofs.doubts) or bool(report.seen.report and report.seen.report.failing)
        self.remembered.refusals = self.remembered.refusals + 1 if self.upkeep.refused or self.upkeep.taken else 0
        if doubted or _overtaken(report.decision):
            return Looked(again_seconds=WALKING_SECONDS)
        if self.upkeep.restored and not self.upkeep.refused and not self.upkeep.taken:
            return Looked(again_seconds=WALKING_SECONDS)
        if self.upkeep.refused or self.upkeep.taken:  # a quota, say: it may take hours, and what is changed here wakes a pass anyway
            return Looked(again_seconds=WALKING_SECONDS * 2 ** min(self.remembered.refusals - 1, _MOST_DOUBLINGS))
        return Looked(again_seconds=again_seconds)

    def _write(self, report: Report) -> None:
        """Write what changed of the status, and its events."""
        if self.crd_note:
            message = "; ".join(filter(None, [report.accepted.message, self.crd_note]))
            report = replace(report, accepted=report.accepted.model_copy(update={"message": message}))
        refused, taken = tuple(self.upkeep.refused), tuple(self.upkeep.taken)
        report = replace(report, proofs=self.remembered.proofs.proven, refused=refused, taken=taken, restored=self.upkeep.restored)
        before, after = report.seen.status, status_of(report)
        patch = merge_patch(before, after)
        if not patch:
            return
        version = self.ports.cluster.patch_status(*report.seen.owner, patch, str(self.body["metadata"].get("resourceVersion", "")))
        for kind, reason, message in events(report, before.get("conditions") or [], after["conditions"]):
            self.ports.cluster.event(self.body, kind, reason, message)
        self.body = {**self.body, "metadata": {**self.body["metadata"], "resourceVersion": version}, "status": after}


def _overtaken(decision: Adopt | Keep | None) -> bool:
    return isinstance(decision, Keep) and decision.reason is Kept.OVERTAKEN


def _nothing_to_name(plan: Plan) -> Course:
    raise AssertionError(f"no question was asked, so there is no plan {plan.revision} to be adopted")
