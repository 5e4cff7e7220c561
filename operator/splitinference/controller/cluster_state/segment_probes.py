"""Proofs of segments: a real inference through each process that is to serve, asked once, and again when something speaks against it.

Held in memory and in the status, so that a restart of the operator asks nothing anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from splitinference.controller.cluster_state.segment_pods import SegmentPod
from splitinference.controller.identity import Owner
from splitinference.controller.ports import Segments
from splitinference.core.transition.state import Phase

_MOST_FAILURES_A_PASS = 3
_SURE_AFTER = timedelta(seconds=5)
_SURE_TIMES = 3


@dataclass(frozen=True)
class Doubt:
    """Proofs that failed in a row, in one way. `served`: the process was proven before; only then an error means that it broke.

    `lost`: it cannot be reached from here, and requests cannot get past it either.
    """

    since: datetime
    times: int
    why: str
    dead: bool
    served: bool
    lost: bool = False

    def sure(self, now: datetime) -> bool:
        """Whether this was seen for so long that it will not mend itself."""
        return self.times >= _SURE_TIMES and now - self.since >= _SURE_AFTER


@dataclass(frozen=True)
class Proofs:
    """Keys of processes that are proven; and what is held against others."""

    proven: frozenset[str] = frozenset()
    doubts: dict[str, Doubt] = field(default_factory=dict)

    def broken(self, now: datetime) -> dict[str, str]:
        """Processes that answer with errors for so long that they will not mend themselves. One that is merely slow is never among them."""
        return {key: doubt.why for key, doubt in self.doubts.items() if (doubt.dead or doubt.lost) and doubt.sure(now)}

    def lost(self, now: datetime) -> frozenset[str]:
        """Those of them whose node, or the way there, is gone: what is made anew there would be lost too."""
        return frozenset(key for key, doubt in self.doubts.items() if doubt.lost and doubt.sure(now))


@dataclass(frozen=True)
class Prover:
    """Asks segments of one resource, now."""

    port: Segments
    owner: Owner
    now: datetime

    def prove(self, proofs: Proofs, segments: Sequence[SegmentPod], failing: Mapping[str, datetime]) -> Proofs:
        """Ask those that are ready and not proven; and the proven that are not ready or that requests cannot get past. `failing`: names of
        the latter, and since when the gateway says so."""
        failures = 0
        present = {pod.proof_key for pod in segments}
        proofs = Proofs(proven=proofs.proven & present, doubts={key: doubt for key, doubt in proofs.doubts.items() if key in present})
        for pod in segments:
            proven, doubted = pod.proof_key in proofs.proven, pod.proof_key in proofs.doubts
            due = (not pod.ready or pod.name in failing) if proven else (pod.ready or doubted)
            over = pod.segment.phase in (Phase.LEAVING, Phase.FAILED)
            if due and pod.ip and not over and failures < _MOST_FAILURES_A_PASS:
                proofs = self._ask(proofs, pod, failing.get(pod.name))
                failures += pod.proof_key not in proofs.proven
        return proofs

    def _ask(self, proofs: Proofs, pod: SegmentPod, failing_since: datetime | None) -> Proofs:
        key = pod.proof_key
        proof = self.port.prove(self.owner, pod.name, pod.model, pod.ip)
        others = {k: doubt for k, doubt in proofs.doubts.items() if k != key}
        if proof.ok:
            return Proofs(proven=proofs.proven | {key}, doubts=others)
        before = proofs.doubts.get(key)
        served = key in proofs.proven or (before is not None and before.served)
        dead, lost = proof.dead and served, proof.unreachable and served and failing_since is not None
        # What requests met before we looked counts, up to what makes sure: the gateway's clock may be another.
        met = self.now if failing_since is None or not lost else min(self.now, max(failing_since, self.now - _SURE_AFTER))
        same = before is not None and (before.dead, before.lost) == (dead, lost)
        doubt = Doubt(
            since=before.since if before and same else met,
            times=before.times + 1 if before and same else 1,
            why=proof.why,
            dead=dead,
            served=served,
            lost=lost,
        )
        return Proofs(proven=proofs.proven - {key}, doubts={**others, key: doubt})
