"""Objects of a resource besides its segments, kept as the plan in force needs them: certificates, Services, the gateway, the budget, pods
that fetch weights, verifiers. What is refused is gathered for the status and never ends a pass."""

from dataclasses import dataclass, field

from splitinference.controller.api.conditions import Condition
from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.disruption_budget import BUDGET, budget_name, segments_budget
from splitinference.controller.manifests.route import Stored
from splitinference.controller.plan_io.plan_status import Built, Planned
from splitinference.controller.ports import Manifest, NameTakenError, Ports, RefusedError
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.upkeep.credentials import Written, ensure_secrets
from splitinference.controller.reconcile.upkeep.gateway_rollout import Front, ensure_gateway, restore_gateway
from splitinference.controller.reconcile.upkeep.object_keeper import Keeper
from splitinference.controller.reconcile.upkeep.prefetch import Prefetcher
from splitinference.controller.reconcile.upkeep.verification import Verifiers
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings


@dataclass
class Applied:
    """What is remembered of a resource's objects between passes."""

    secrets: Written = field(default_factory=Written)
    front: Front = field(default_factory=Front)
    services: Keeper = field(default_factory=Keeper)
    budget: Keeper = field(default_factory=Keeper)


@dataclass
class Upkeep:
    """Keeps the objects during one pass. `refused`: what the API server did not take; `taken`: names that another owner holds; `restored`:
    what others had deleted or changed."""

    ports: Ports
    settings: Settings
    applied: Applied
    refused: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    restored: tuple[str, ...] = ()

    def keep_secrets(self, body: Manifest) -> None:
        """The Secrets with certificates."""
        try:
            self.applied.secrets = ensure_secrets(self.ports, body, self.applied.secrets)
        except RefusedError as error:
            self._was_refused("the Secret with certificates", error)

    def keep_services(self, built: Built, seen: Seen) -> None:
        """Every segment of the plan that is there has its Service: without it the segment before cannot find it."""
        services = [built.objects[pod.name].service for pod in seen.segments if pod.name in built.objects]
        try:
            self.restored += self.applied.services.keep(self.ports.cluster, services)
        except RefusedError as error:
            self._was_refused("a Service of the segments", error)

    def keep_gateway(self, resource: Resource, profile: Profile, seen: Seen) -> None:
        """The gateway, changed where it is another than the one that was applied."""
        try:
            self.restored += ensure_gateway(self.ports, resource, profile, self.applied.front, seen)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def restore_gateway(self, resource: Resource, profile: Profile) -> None:
        """What others deleted of the gateway, and nothing else."""
        try:
            self.restored += restore_gateway(self.ports, resource, profile, self.applied.front)
        except RefusedError as error:
            self._was_refused("the gateway", error)

    def keep_budget(self, resource: Resource, stored: Stored | None) -> None:
        """What serves may not be evicted; what does not may."""
        if not self.settings.disruption_budgets:
            return
        cluster, name = self.ports.cluster, budget_name(resource.name)
        try:
            if stored is not None:
                self.applied.budget.keep(cluster, [segments_budget(resource, stored.route.names)])
            elif any(found["metadata"]["name"] == name for found in cluster.owned(BUDGET, resource.namespace, resource.name)):
                cluster.delete(BUDGET, resource.namespace, name)
        except RefusedError as error:
            self._was_refused("the PodDisruptionBudget of the segments", error)

    def keep_prefetches(self, planned: Planned, profile: Profile, likely: Plan | None, problem: Problem, seen: Seen) -> None:
        """Pods that bring weights to the likely targets of this plan; without a plan, none."""
        self.refused += Prefetcher(self.ports, planned.resource, profile).keep(likely, problem, seen.owned)

    def keep_verifiers(
        self, planned: Planned, built: Built, *, profile: Profile, wanted: Resource, problem: Problem, seen: Seen
    ) -> Condition | None:
        """Verifiers of a plan that serves, as `wanted` asks for them now."""
        kept = Verifiers(self.ports, planned.resource, profile, wanted, seen, self.settings.network_policies).keep(planned, built, problem)
        self.refused += kept.refused
        return kept.condition

    def _was_refused(self, what: str, error: RefusedError) -> None:
        """What another owner holds is told apart from what the API server does not take."""
        if isinstance(error, NameTakenError):
            self.taken.append(str(error))
        else:
            self.refused.append(f"{what} was refused: {error}")
