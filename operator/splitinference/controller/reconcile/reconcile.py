"""One pass for one SplitInference: read everything, decide purely, take the next steps, write the status, end.

A pass never waits, and takes nothing for granted that an earlier pass did: it may be killed between any two writes, and the next goes on.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from splitinference.controller.api.adaptation_spec import Prefetch
from splitinference.controller.api.conditions import Condition, merge_patch
from splitinference.controller.api.spec import Resource, SpecReader
from splitinference.controller.cluster_state.segment_probes import Proofs
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.history.adaptation_state import read_recall
from splitinference.controller.kube_values.start_failures import Told
from splitinference.controller.manifests.disruption_budget import BUDGET, budget_name, segments_budget
from splitinference.controller.manifests.route import Stored
from splitinference.controller.plan_io.plan_status import Built, Planned, build, read_plan
from splitinference.controller.ports import Listing, Manifest, NameTakenError, Ports, RefusedError
from splitinference.controller.reconcile.credentials import Written, ensure_secrets
from splitinference.controller.reconcile.decision_inputs import calibrated, facts_of
from splitinference.controller.reconcile.desired import Asked, profile_for, read_asked
from splitinference.controller.reconcile.executor import Walker
from splitinference.controller.reconcile.gateway_rollout import Front, ensure_gateway, is_coming, restore_gateway
from splitinference.controller.reconcile.gather import Looker, Seen, owner_of
from splitinference.controller.reconcile.move_outcome import judge, promised
from splitinference.controller.reconcile.node_measuring import nodes_to_wait_for
from splitinference.controller.reconcile.object_keeper import Keeper
from splitinference.controller.reconcile.plan_pass import Course, PassInputs, PassPlan, Question, confirmed, plan_pass
from splitinference.controller.reconcile.prefetch import Prefetcher
from splitinference.controller.reconcile.privacy import guarded, promised_rules, stops_exposed
from splitinference.controller.reconcile.proposals import Offer, offer_after, read_offer, said_of, with_rejection
from splitinference.controller.reconcile.report import Report, events, status_of
from splitinference.controller.reconcile.verification import Verifiers, without_trusted_node
from splitinference.controller.runtime.solve_throttle import Reviews
from splitinference.controller.spec_to_core.policy import policy, strategy
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.transition.steps import Done, Steps, Strategy
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Problem
from splitinference.core.values.profile import Profile
from splitinference.core.values.result import Limits, Outcome
from splitinference.settings import Settings

log = logging.getLogger(__name__)

_WALKING_SECONDS = 1.0
_MOST_DOUBLINGS = 5
"""What the API server refuses is tried again after 1, 2, 4 … 32 s."""
Key = tuple[str, str]


@dataclass(frozen=True)
class Looked:
    """How a pass ended. `gone`: there is no such resource; `again_seconds`: look again so soon if nothing wakes before, None as usual;
    `solved`: the solver was asked."""

    gone: bool = False
    again_seconds: float | None = None
    solved: bool = False


@dataclass
class _Kept:
    """What is kept between passes of one resource, only to do less: after a restart all of it is found out anew."""

    proofs: Proofs
    specs: SpecReader = field(default_factory=SpecReader)
    plan: "_ReadPlan | None" = None
    secrets: Written = field(default_factory=Written)
    front: Front = field(default_factory=Front)
    services: Keeper = field(default_factory=Keeper)
    budget: Keeper = field(default_factory=Keeper)
    refusals: int = 0
    told: Told = field(default_factory=Told)


@dataclass(frozen=True)
class _ReadPlan:
    """The plan that a resource's status has (`written`), as it was read; and its segments, for the model with `profile`."""

    uid: str
    written: Mapping[str, Any]
    planned: Planned
    profile: Profile | None = None
    built: Built | None = None


@dataclass
class Reconciler:
    """Makes passes. One for the whole operator; passes of different resources may run at the same time, of one resource never."""

    ports: Ports
    settings: Settings
    solve: Solve
    crd_note: Callable[[], str] = lambda: ""
    _kept: dict[Key, _Kept] = field(default_factory=dict)
    _reviews: Reviews = field(default_factory=Reviews)

    def __post_init__(self) -> None:
        self._sight = Sight(self.settings)

    def reconcile(self, namespace: str, name: str) -> Looked:
        """One pass. Raises UnavailableError when the API server cannot be worked with: nothing is lost, try again."""
        resources = self.ports.cluster.split_inferences()
        body = next((found for found in resources if owner_of(found) == (namespace, name)), None)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._kept.pop((namespace, name), None)
            self.ports.authority.forget(namespace, name)
            return Looked(gone=body is None)
        kept = self._kept.setdefault(
            (namespace, name), _Kept(proofs=Proofs(proven=frozenset(read_recall(body.get("status") or {}).proofs)))
        )
        asked = _Asked(self.solve)
        looked = _Pass(self.ports, self.settings, asked, body, resources, kept, self._sight, self._reviews, self.crd_note()).run()
        return replace(looked, solved=asked.times > 0)


@dataclass
class _Asked:
    """The solver, and how often it was asked."""

    solve: Solve
    times: int = 0

    def __call__(self, problem: Problem, limits: Limits, hint: Plan | None = None) -> Outcome:
        self.times += 1
        return self.solve(problem, limits, hint)


@dataclass
class _Pass:
    ports: Ports
    settings: Settings
    solve: "_Asked"
    body: Manifest
    resources: Listing
    kept: _Kept
    sight: Sight
    reviews: Reviews
    crd_note: str = ""
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    restored: tuple[str, ...] = ()
    problem: Problem | None = None
    offer: Offer | None = None
    named: dict[str, tuple[Planned, Built]] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        """Of one solve."""
        return Limits(seconds=self.settings.solve_seconds)

    @property
    def looker(self) -> Looker:
        """Reads, for this resource."""
        return Looker(self.ports, self.settings, self.body, self.sight, self.kept.told)

    def run(self) -> Looked:
        """The pass: gather, plan, act, report."""
        asked = read_asked(self.body, self.kept.specs.read(self.body), self.ports.models, self.settings)
        force = self._in_force(asked)
        seen, self.kept.proofs = self.looker.look(self.resources, force.wanted, self.kept.proofs)
        asked = without_trusted_node(asked, seen)
        if isinstance(asked, Asked) or asked.holds is not False or force.planned is not None:
            self._ensure_secrets()
        if isinstance(asked, Asked) and force.planned is None and (report := self._waits_for_first(asked, seen)) is not None:
            return self._finish(report, _WALKING_SECONDS)
        if isinstance(asked, Asked) and force.planned is not None and force.profile is not None:
            seen = guarded(self.ports, asked.resource, seen, promised_rules(force.planned, force.profile))
        inputs, seen = self._inputs(asked, force, seen)
        made = self._plan(inputs, asked)
        if made.memory is not None:
            seen = replace(seen, recall=seen.recall.model_copy(update={"memory": made.memory}))
        if isinstance(asked, Asked) and isinstance(made.decision, Adopt):
            made, force, seen = self._commit(made, inputs, asked, force, seen)
        return self._act(made, asked, force, seen)

    # --- gathering -------------------------------------------------------------------------------------------------------------------

    def _in_force(self, asked: Asked | Condition) -> "_InForce":
        """What is in force before this pass: the plan in the status, of which model, and its segments. Each is read anew only where it is
        another than in the last pass."""
        status, kept, uid = self.body.get("status") or {}, self.kept.plan, str(self.body["metadata"].get("uid", ""))
        written = status.get("plan") or {}
        if kept is None or kept.uid != uid or kept.written != written:
            planned = read_plan(status, lambda spec: self.kept.specs.read(self.body, spec))
            kept = _ReadPlan(uid, written, planned) if planned is not None else None
        resource = asked.resource if isinstance(asked, Asked) else kept.planned.resource if kept is not None else None
        if kept is None:
            self.kept.plan = None
            return _InForce(resource)
        profile = profile_for(kept.planned, asked, self.ports.models)
        if profile is not None and (kept.built is None or kept.profile != profile):
            kept = replace(kept, profile=profile, built=build(kept.planned, profile, self.ports.builder))
        self.kept.plan = kept
        return _InForce(resource, kept.planned, profile, kept.built if profile is not None else None)

    def _waits_for_first(self, asked: Asked, seen: Seen) -> Report | None:
        """What to say while the first plan waits for measured nodes, or for the gateway's place."""
        self._ensure_gateway(asked.resource, asked.profile, seen)
        if waits_for := nodes_to_wait_for(self.ports.benchmarks, asked.resource, seen, self.settings):
            return Report(seen=seen, accepted=asked.condition, resource=asked.resource, measuring=waits_for)
        if is_coming(self.ports, asked.resource, seen):
            return Report(seen=seen, accepted=asked.condition, resource=asked.resource)
        return None

    def _inputs(self, asked: Asked | Condition, force: "_InForce", seen: Seen) -> tuple[PassInputs, Seen]:
        """What the pass is planned from; and what is seen, with what observed stages taught."""
        question = None
        if isinstance(asked, Asked):
            seen, self.problem = calibrated(asked, force.planned, force.built, seen)
            self.offer = read_offer(self.body, asked, force.built)
            seen = with_rejection(seen, self.offer)
            facts = facts_of(asked, self.problem, force.planned, force.built, seen)
            if self.offer is not None and self.offer.approved:
                facts = facts.model_copy(update={"approved": self.offer.plan})
            question = Question(facts, policy(asked.resource.spec.adaptation), seen.recall.memory, self.limits)
        inputs = PassInputs(
            observed=seen.observed,
            strategy=strategy(force.resource.spec.adaptation) if force.resource is not None else Strategy.SURGE,
            course=force.course,
            nodes=seen.reading.snapshot.nodes,
            stops_exposed=force.resource is not None and stops_exposed(force.resource),
            question=question,
            avoided=frozenset(seen.recall.quarantined(seen.now)),
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

    def _course(self, asked: Asked, plan: Plan) -> Course:
        """A plan for what is asked, with its segments."""
        known = self.named.get(plan.revision)
        if known is None or known[0].plan != plan:
            planned = Planned(plan=plan, resource=asked.resource, spec=self.body.get("spec") or {}, asked=asked.digest)
            known = self.named[plan.revision] = planned, build(planned, asked.profile, self.ports.builder)
        return Course(plan, known[1].target, asked.digest, asked.constraints)

    def _commit(self, made: PassPlan, inputs: PassInputs, asked: Asked, force: "_InForce", seen: Seen) -> "tuple[PassPlan, _InForce, Seen]":
        """Make it the plan, if no other resource's plan took the memory meanwhile. The plan is in the status before anything is done about
        it."""
        with self.ports.planning:
            reading = self.looker.read(seen.now, seen.nodes, seen.pods, seen.measured, self.ports.cluster.split_inferences())
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
        return replace(made, decision=None), _InForce(asked.resource, planned, asked.profile, built), replace(seen, body=self.body)

    # --- acting ----------------------------------------------------------------------------------------------------------------------

    def _act(self, made: PassPlan, asked: Asked | Condition, force: "_InForce", seen: Seen) -> Looked:
        report = Report(
            seen=seen,
            accepted=asked.condition if isinstance(asked, Asked) else asked,
            resource=force.resource,
            planned=force.planned,
            built=force.built,
            decision=said_of(self.offer, made.decision),
            serving=seen.stored.route if seen.stored else None,
            proposal=self._proposal(made, force, seen),
        )
        planned, built, profile, resource = force.planned, force.built, force.profile, force.resource
        if planned is None or built is None or profile is None or resource is None or made.steps is None:
            return self._finish(report, None)
        self._keep_services(built, seen)
        walker = Walker(self.ports, planned.resource, resource.spec.adaptation.drain.total_seconds(), built, seen)
        stored = walker.take(made.steps.actions) if isinstance(made.steps, Steps) else seen.stored
        self.refused += walker.refused
        self.taken += walker.taken
        # The gateway changes when its route does not: another model's tokenizer must not meet the segments of this one.
        if isinstance(made.steps, Done) or seen.stored is None or not seen.gateways:
            self._ensure_gateway(planned.resource, profile, seen)
        else:
            self._restore_gateway(planned.resource, profile)
        self._keep_budget(resource, stored)
        if isinstance(made.steps, Done) and self.problem is not None:
            likely = resource.spec.adaptation.prefetch is Prefetch.LIKELY_TARGETS
            prefetcher = Prefetcher(self.ports, planned.resource, profile)
            self.refused += prefetcher.keep(planned.plan if likely else None, self.problem, seen.owned)
        verified = self._verify(planned, built, profile, report) if isinstance(made.steps, Done) else None
        verdict = judge(seen, isinstance(made.steps, Done))
        report = replace(
            report,
            seen=replace(seen, recall=verdict.recall),
            verdict=verdict,
            steps=made.steps,
            serving=stored.route if stored else None,
            exposed=made.exposed,
            verified=verified,
            endpoint=self.ports.builder.endpoint(planned.resource),
        )
        return self._finish(report, _WALKING_SECONDS if isinstance(made.steps, Steps) else None)

    def _proposal(self, made: PassPlan, force: "_InForce", seen: Seen) -> Mapping[str, Any]:
        """The plan that is offered after the pass."""
        proposed = made.decision.proposal if isinstance(made.decision, Keep) else None
        named = self.named.get(proposed.revision) if proposed is not None else None
        return offer_after(self.offer, made.decision, named, seen, force.built)

    def _verify(self, planned: Planned, built: Built, profile: Profile, report: Report) -> Condition | None:
        """Verifiers of a plan that serves; while a transition is under way they stay as they are."""
        if report.resource is None or self.problem is None:
            return None
        verifiers = Verifiers(self.ports, planned.resource, profile, report.resource, report.seen, self.settings.network_policies)
        kept = verifiers.keep(planned, built, self.problem)
        self.refused += kept.refused
        return kept.condition

    def _keep_services(self, built: Built, seen: Seen) -> None:
        """Every segment of the plan that is there has its Service: without it the segment before cannot find it."""
        services = [built.objects[pod.name].service for pod in seen.segments if pod.name in built.objects]
        try:
            self.restored += self.kept.services.keep(self.ports.cluster, services)
        except RefusedError as error:
            self._was_refused("a Service of the segments", error)

    def _ensure_secrets(self) -> None:
        try:
            self.kept.secrets = ensure_secrets(self.ports, self.body, self.kept.secrets)
        except RefusedError as error:
            self._was_refused("the Secret with certificates", error)

    def _ensure_gateway(self, resource: Resource, profile: Profile, seen: Seen) -> None:
        try:
            self.restored += ensure_gateway(self.ports, resource, profile, self.kept.front, seen)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def _restore_gateway(self, resource: Resource, profile: Profile) -> None:
        try:
            self.restored += restore_gateway(self.ports, resource, profile, self.kept.front)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def _keep_budget(self, resource: Resource, stored: Stored | None) -> None:
        """What serves may not be evicted; what does not may."""
        if not self.settings.disruption_budgets:
            return
        cluster, name = self.ports.cluster, budget_name(resource.name)
        try:
            if stored is not None:
                self.kept.budget.keep(cluster, [segments_budget(resource, stored.route.names)])
            elif any(found["metadata"]["name"] == name for found in cluster.owned(BUDGET, resource.namespace, resource.name)):
                cluster.delete(BUDGET, resource.namespace, name)
        except RefusedError as error:
            self._was_refused("the PodDisruptionBudget of the segments", error)

    def _was_refused(self, what: str, error: RefusedError) -> None:
        """What another owner holds is told apart from what the API server does not take."""
        if isinstance(error, NameTakenError):
            self.taken.append(str(error))
        else:
            self.refused.append(f"{what} was refused: {error}")

    # --- the end ---------------------------------------------------------------------------------------------------------------------

    def _finish(self, report: Report, again_seconds: float | None) -> Looked:
        self._write(report)
        doubted = bool(self.kept.proofs.doubts) or bool(report.seen.report and report.seen.report.failing)
        self.kept.refusals = self.kept.refusals + 1 if self.refused or self.taken else 0
        if doubted or _overtaken(report.decision):
            return Looked(again_seconds=_WALKING_SECONDS)
        if self.restored and not self.refused and not self.taken:
            return Looked(again_seconds=_WALKING_SECONDS)
        if self.refused or self.taken:  # a quota, say: it may take hours, and what is changed here wakes a pass anyway
            return Looked(again_seconds=_WALKING_SECONDS * 2 ** min(self.kept.refusals - 1, _MOST_DOUBLINGS))
        return Looked(again_seconds=again_seconds)

    def _write(self, report: Report) -> None:
        """Write what changed of the status, and its events."""
        if self.crd_note:
            message = "; ".join(filter(None, [report.accepted.message, self.crd_note]))
            report = replace(report, accepted=report.accepted.model_copy(update={"message": message}))
        refused, taken = tuple(self.refused), tuple(self.taken)
        report = replace(report, proofs=self.kept.proofs.proven, refused=refused, taken=taken, restored=self.restored)
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


@dataclass(frozen=True)
class _InForce:
    """What a resource goes by. `resource`: what is asked for; while that cannot be worked with, as it was when the plan was made. `profile`
    and `built` are there only where the model that the plan was made for can be read."""

    resource: Resource | None
    planned: Planned | None = None
    profile: Profile | None = None
    built: Built | None = None

    @property
    def wanted(self) -> frozenset[str]:
        """Names of the plan's segments."""
        return frozenset(self.built.target.segments) if self.built is not None else frozenset()

    @property
    def course(self) -> Course | None:
        """The plan as a pass goes by it."""
        if self.planned is None:
            return None
        rules = promised_rules(self.planned, self.profile) if self.profile is not None else Constraints()
        return Course(self.planned.plan, self.built.target if self.built is not None else None, self.planned.asked, rules)


def _nothing_to_name(plan: Plan) -> Course:
    raise AssertionError(f"no question was asked, so there is no plan {plan.revision} to be adopted")
