"""One pass for one SplitInference: read everything, decide purely, take the next steps, write the status, end.

A pass never waits, and takes nothing for granted that an earlier pass did: it may be killed between any two writes, and the next goes on.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from splitinference.controller.api.conditions import Condition, merge_patch
from splitinference.controller.api.spec import Prefetch, Resource, read_resource
from splitinference.controller.cluster_state.segment_probes import Proofs
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.history.adaptation_state import read_recall
from splitinference.controller.kube_values.start_failures import Told
from splitinference.controller.manifests.disruption_budget import BUDGET, budget_name, segments_budget
from splitinference.controller.manifests.route import Stored, withdrawn
from splitinference.controller.plan_io.plan_status import Built, Planned, build, read_plan
from splitinference.controller.ports import Manifest, NameTakenError, Ports, RefusedError
from splitinference.controller.reconcile.credentials import Written, ensure_secrets
from splitinference.controller.reconcile.decision_inputs import calibrated, facts_of, rehearsed
from splitinference.controller.reconcile.desired import Asked, profile_for, read_asked
from splitinference.controller.reconcile.executor import Walker
from splitinference.controller.reconcile.gateway_rollout import Front, ensure_gateway, is_coming, restore_gateway
from splitinference.controller.reconcile.gather import Looker, Seen, owner_of
from splitinference.controller.reconcile.move_outcome import judge, promised
from splitinference.controller.reconcile.node_measuring import nodes_to_wait_for
from splitinference.controller.reconcile.object_keeper import Keeper
from splitinference.controller.reconcile.prefetch import Prefetcher
from splitinference.controller.reconcile.privacy import allowed, exposed_route, promised_rules
from splitinference.controller.reconcile.report import Report, events, status_of
from splitinference.controller.runtime.solve_throttle import Reviews
from splitinference.controller.spec_to_core.policy import policy, strategy
from splitinference.core.cost import violations
from splitinference.core.decide.base.compare import Change
from splitinference.core.decide.base.decision import Adopt, Keep, Kept
from splitinference.core.decide.base.policy import DecisionInputs, Memory
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.core.decide.decide import decide
from splitinference.core.transition.steps import Done, Steps, next_steps
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
    built: "_Read | None" = None
    secrets: Written = field(default_factory=Written)
    front: Front = field(default_factory=Front)
    keeper: Keeper = field(default_factory=Keeper)
    refusals: int = 0
    told: Told = field(default_factory=Told)


@dataclass(frozen=True)
class _Read:
    """The plan that a resource's status has, and its segments; `body` is the resource as it was read."""

    body: Manifest
    profile: Profile
    planned: Planned
    built: Built


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
    resources: Sequence[Manifest]
    kept: _Kept
    sight: Sight
    reviews: Reviews
    crd_note: str = ""
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    restored: tuple[str, ...] = ()
    problem: Problem | None = None

    @property
    def limits(self) -> Limits:
        """Of one solve."""
        return Limits(seconds=self.settings.solve_seconds)

    def run(self) -> Looked:
        """The pass."""
        asked = read_asked(self.body, self.ports.models, self.settings)
        planned, profile, built = self._planned(asked)
        looker = Looker(self.ports, self.settings, self.body, self.sight, self.kept.told)
        wanted = frozenset(built.target.segments) if built else frozenset[str]()
        seen, self.kept.proofs = looker.look(self.resources, wanted, self.kept.proofs)
        decision: Adopt | Keep | None = None
        if isinstance(asked, Asked) or asked.holds is not False or planned is not None:
            self._ensure_secrets()
        if isinstance(asked, Asked):
            if planned is None:
                self._ensure_gateway(self.body, asked.profile, seen)
                if waits_for := nodes_to_wait_for(self.ports.benchmarks, asked.resource, seen, self.settings):
                    report = Report(seen=seen, accepted=asked.condition, resource=asked.resource, measuring=waits_for)
                    return self._finish(report, _WALKING_SECONDS)
                if is_coming(self.ports, self.body, seen):
                    return self._finish(Report(seen=seen, accepted=asked.condition, resource=asked.resource), _WALKING_SECONDS)
            if planned is not None and profile is not None:
                seen = self._guarded(asked.resource, seen, promised_rules(planned, self.body, profile))
            seen, problem = calibrated(asked, planned, built, seen)
            self.problem = problem
            facts = facts_of(asked, problem, planned, built, seen)
            decision, memory = self._decide(facts, asked, seen)
            seen = replace(seen, recall=seen.recall.model_copy(update={"memory": memory}))
            if isinstance(decision, Adopt):
                adopted = self._adopt(decision, asked, facts, seen, looker)
                if isinstance(adopted, Keep):
                    decision = adopted
                else:
                    seen, planned, built = adopted
                    profile, decision = asked.profile, None
        accepted = asked.condition if isinstance(asked, Asked) else asked
        resource = _in_force(asked, planned, self.body)
        report = Report(seen=seen, accepted=accepted, resource=resource, planned=planned, built=built, decision=decision)
        report = replace(report, serving=seen.stored.route if seen.stored else None)
        if planned is None or built is None or profile is None or resource is None:
            return self._finish(report, None)
        return self._walk(report, planned, built, profile, resource)

    def _walk(self, report: Report, planned: Planned, built: Built, profile: Profile, resource: Resource) -> Looked:
        seen, body = report.seen, planned.of(self.body)
        steps = next_steps(built.target, seen.observed, strategy(resource.spec.adaptation))
        steps, kept_from = allowed(steps, seen, built, resource, promised_rules(planned, self.body, profile))
        walker = Walker(self.ports, body, resource, built, seen)
        walker.ensure_services()
        self.restored += tuple(walker.restored)
        stored = walker.take(steps.actions) if isinstance(steps, Steps) else seen.stored
        self.refused += walker.refused
        self.taken += walker.taken
        # The gateway changes when its route does not: another model's tokenizer must not meet the segments of this one.
        if isinstance(steps, Done) or seen.stored is None or not seen.gateways:
            self._ensure_gateway(body, profile, seen)
        else:
            self._restore_gateway(body, profile)
        self._keep_budget(resource, stored)
        if isinstance(steps, Done) and self.problem is not None:
            likely = resource.spec.adaptation.prefetch is Prefetch.LIKELY_TARGETS
            self.refused += Prefetcher(self.ports, body, profile).keep(planned.plan if likely else None, self.problem, seen.owned)
        serving = stored.route if stored else None
        verdict = judge(seen, isinstance(steps, Done))
        report = replace(
            report, seen=replace(seen, recall=verdict.recall), verdict=verdict, steps=steps, serving=serving, exposed=kept_from
        )
        report = replace(report, endpoint=self.ports.builder.endpoint(body))
        return self._finish(report, _WALKING_SECONDS if isinstance(steps, Steps) else None)

    def _guarded(self, resource: Resource, seen: Seen, rules: Constraints) -> Seen:
        """Nothing is sent any more where a rule of privacy is broken, if the resource wants it so: at once, before a new plan is made."""
        if why_stopped := exposed_route(resource, seen, rules):
            log.warning("%s/%s: the route is withdrawn: %s", *seen.owner, "; ".join(why_stopped))
            self.ports.cluster.apply(self.ports.builder.route(self.body, withdrawn()))
            return replace(seen, stored=None, stopped=True)
        return seen

    def _planned(self, asked: Asked | Condition) -> tuple[Planned | None, Profile | None, Built | None]:
        """The plan in the status, of which model, and its segments: as the last pass found them, while the resource is the very same."""
        kept = self.kept.built
        planned = kept.planned if kept and kept.body is self.body else read_plan(self.body.get("status") or {})
        profile = profile_for(planned, self.body, asked, self.ports.models) if planned else None
        if planned is None or profile is None:
            return planned, profile, None
        if kept is None or kept.body is not self.body or kept.profile is not profile:
            kept = self.kept.built = _Read(self.body, profile, planned, build(planned, self.body, profile, self.ports.builder))
        return planned, profile, kept.built

    # --- the plan --------------------------------------------------------------------------------------------------------------------

    def _decide(self, facts: DecisionInputs, asked: Asked, seen: Seen) -> tuple[Adopt | Keep, Memory]:
        leave = self.reviews.begin(seen.now, confirming=Reason.BETTER_PLAN in seen.recall.memory.watches)
        try:
            return decide(
                facts.model_copy(update={"may_review": leave}),
                policy(asked.resource.spec.adaptation),
                seen.recall.memory,
                self.solve,
                self.limits,
                dry_run=lambda plan: rehearsed(plan, asked, seen, self.ports.builder)[2],
            )
        finally:
            if leave:
                self.reviews.end(seen.now, self.ports.clock.now(), solved=self.solve.times > 0)

    def _adopt(
        self, decision: Adopt, asked: Asked, facts: DecisionInputs, seen: Seen, looker: Looker
    ) -> tuple[Seen, Planned, Built] | Keep:
        """Make it the plan, if no other resource's plan took the memory meanwhile. The plan is in the status before anything is done about
        it."""
        planned, built, _ = rehearsed(decision.plan, asked, seen, self.ports.builder)
        with self.ports.planning:
            resources = self.ports.cluster.split_inferences()
            reading = looker.read(seen.now, seen.nodes, seen.pods, seen.measured, resources)
            broken = violations(decision.plan, facts.problem.model_copy(update={"snapshot": reading.snapshot}))
            if taken := [violation.message for violation in broken if violation.constraint == "memory"]:
                message = f"{decision.message}; another resource's plan took the memory: {'; '.join(taken)}"
                return Keep(reason=Kept.OVERTAKEN, message=message)
            # A first plan moves nothing, and may have been made while nodes unpacked our images: no cooldown keeps it from being mended.
            recall = seen.recall if decision.change in (Change.KEEP, Change.FIRST) else seen.recall.moved(seen.now)
            recall = promised(recall, decision, built.target.route.revision, seen.report.observed if seen.report else None)
            seen = replace(seen, reading=reading, recall=recall)
            serving = seen.stored.route if seen.stored else None
            self._write(
                Report(
                    seen=seen,
                    accepted=asked.condition,
                    resource=asked.resource,
                    planned=planned,
                    built=built,
                    decision=decision,
                    serving=serving,
                )
            )
        log.info("%s/%s: %s: %s", *seen.owner, decision.reason, decision.message)
        return replace(seen, body=self.body), planned, built

    def _ensure_secrets(self) -> None:
        try:
            self.kept.secrets = ensure_secrets(self.ports, self.body, self.kept.secrets)
        except RefusedError as error:
            self._was_refused("the Secret with certificates", error)

    def _ensure_gateway(self, body: Manifest, profile: Profile, seen: Seen) -> None:
        try:
            self.restored += ensure_gateway(self.ports, body, profile, self.kept.front, seen)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def _restore_gateway(self, body: Manifest, profile: Profile) -> None:
        try:
            self.restored += restore_gateway(self.ports, body, profile, self.kept.front)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def _keep_budget(self, resource: Resource, stored: Stored | None) -> None:
        """What serves may not be evicted; what does not may."""
        if not self.settings.disruption_budgets:
            return
        cluster, name = self.ports.cluster, budget_name(resource.name)
        try:
            if stored is not None:
                self.kept.keeper.keep(cluster, [segments_budget(resource, stored.route.names)])
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


def _in_force(asked: Asked | Condition, planned: Planned | None, body: Manifest) -> Resource | None:
    """The specification to go by: what is asked for, or while that cannot be worked with, what the plan was made for."""
    if isinstance(asked, Asked):
        return asked.resource
    found = read_resource(planned.of(body)) if planned else None
    return found if isinstance(found, Resource) else None
