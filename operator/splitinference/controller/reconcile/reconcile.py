"""Passes over resources: each with what is remembered of its resource, and never two of one resource at a time."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from splitinference.controller.cluster_state.segment_probes import Proofs
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.history.adaptation_state import read_recall
from splitinference.controller.ports import Manifest, Ports
from splitinference.controller.reconcile.in_force import Remembered
from splitinference.controller.reconcile.one_pass import WALKING_SECONDS, CountingSolver, Looked, Pass
from splitinference.controller.reconcile.planning.gather import owner_of
from splitinference.controller.reconcile.unload import Sleep
from splitinference.controller.runtime.solve_throttle import Reviews
from splitinference.core.decide.base.validated_solver import Solve
from splitinference.settings import Settings

Key = tuple[str, str]


@dataclass
class Reconciler:
    """Makes passes. One for the whole operator; passes of different resources may run at the same time, of one resource never.

    `crd_note`: what is to be said of the cluster's CRD; `as_known`: a resource without the defaults of fields that only a newer CRD has.
    """

    ports: Ports
    settings: Settings
    solve: Solve
    crd_note: Callable[[], str] = lambda: ""
    as_known: Callable[[Manifest], Manifest] = lambda body: body
    _remembered: dict[Key, Remembered] = field(default_factory=dict)
    _reviews: Reviews = field(default_factory=Reviews)

    def __post_init__(self) -> None:
        self._sight = Sight(self.settings)

    def reconcile(self, namespace: str, name: str) -> Looked:
        """One pass. Raises UnavailableError when the API server cannot be worked with: nothing is lost, try again."""
        resources = self.ports.cluster.split_inferences()
        body = next((found for found in resources if owner_of(found) == (namespace, name)), None)
        if body is None or body["metadata"].get("deletionTimestamp"):
            self._remembered.pop((namespace, name), None)
            self.ports.authority.forget(namespace, name)
            return Looked(gone=body is None)
        body = self.as_known(body)
        remembered = self._remembered.setdefault(
            (namespace, name), Remembered(proofs=Proofs(proven=frozenset(read_recall(body.get("status") or {}).proofs)))
        )
        if remembered.sleep is not None and remembered.sleep.goes_on(body, self.ports):
            return Looked(again_seconds=WALKING_SECONDS)
        remembered.sleep = None
        asked = CountingSolver(self.solve)
        looked = Pass(self.ports, self.settings, asked, body, resources, remembered, self._sight, self._reviews, self.crd_note()).run()
        if looked.asleep:
            remembered.sleep = Sleep.of(body, self.ports.clock.now())
        return replace(looked, solved=asked.times > 0)
