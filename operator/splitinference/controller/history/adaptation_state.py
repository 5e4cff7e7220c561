"""What a resource's passes remember in its status: the triggers' memory, when it moved, and where its segments failed."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

from pydantic import Field, ValidationError

from splitinference.controller.cluster_state.figures.series_owners import Speaker
from splitinference.controller.cluster_state.segment_pods import SegmentPod
from splitinference.core.decide.base.policy import Memory
from splitinference.core.transition.state import Phase
from splitinference.core.values.value import Value
from splitinference_protocol.report import FailedCheck

_ENOUGH = 3
_FORGOTTEN = timedelta(minutes=10)
_MOST_DOUBLINGS = 4
"""A node that fails again after it was avoided is avoided twice as long, up to so many times: 160 minutes."""
_LONGEST_PAUSE_SECONDS = 60.0
_MOST_GONE = 32
"""Segments of one resource that are gone and still kept in mind."""
_MOST_MOVES = 20
_MOST_REJECTED = 16
REJECTED = timedelta(hours=24)
"""So long a plan that a person rejected is not proposed again."""


class Failures(Value):
    """How often segments failed on one node lately. `key` is the last one's proof key, so that one failure is counted once; `rounds`: how
    often the node was avoided for it, one after another; `lasting`: waiting does not mend it."""

    count: int = Field(ge=1)
    first: datetime
    last: datetime
    why: str
    key: str
    rounds: int = Field(default=1, ge=1)
    lasting: bool = False

    @property
    def avoided(self) -> timedelta:
        """So long after the last failure no plan uses the node."""
        return _FORGOTTEN * 2.0 ** min(self.rounds - 1, _MOST_DOUBLINGS)

    def counts(self, now: datetime) -> bool:
        """Whether the failures are recent enough to avoid the node. A clock that was set back does not make them last."""
        return abs(now - self.last) < self.avoided


DISTRUSTED = timedelta(hours=24)
"""So long no plan uses a node whose output was wrong. It has to be looked at by a person meanwhile."""


class Distrust(Value):
    """A node on which a segment's output was wrong: since when, and what was found."""

    since: datetime
    why: str

    def counts(self, now: datetime) -> bool:
        """Whether the node is still avoided. A clock that was set back does not make that last."""
        return abs(now - self.since) < DISTRUSTED


class Promise(Value):
    """What an optional move promised, to be held against what is observed once it has settled. Times per output token in ms."""

    revision: str
    predicted_before_ms: float
    predicted_after_ms: float
    observed_before_ms: float | None = None
    settled_at: datetime | None = None


class Heard(Value):
    """A segment that measures links: where it is or was, and its addresses, by which its series are told from others. `gone`: since when
    it is there no longer."""

    node: str
    addresses: tuple[str, ...]
    gone: datetime | None = None


class Recall(Value):
    """Kept in status.adaptation. Losing it makes optional moves later and failures count anew, nothing worse."""

    memory: Memory = Memory()
    moves: tuple[datetime, ...] = ()
    failures: Mapping[str, Failures] = Field(default_factory=dict)
    distrusted: Mapping[str, Distrust] = Field(default_factory=dict, description="nodes whose output was wrong")
    promise: Promise | None = None
    paid: int = Field(default=0, ge=0, description="moves that promised quicker tokens, after which they came quicker")
    unpaid: int = Field(default=0, ge=0, description="moves that promised quicker tokens, after which they did not come quicker")
    rejected: Mapping[str, datetime] = Field(default_factory=dict, description="plans that a person rejected, by revision, and when")
    proofs: tuple[str, ...] = Field(default=(), description="proof keys of the processes that were proven")
    devices_gone: Mapping[str, datetime] = Field(
        default_factory=dict, description="devices that segments hold and nodes do not offer, as `<node>/<place>`: since when"
    )
    heard: Mapping[str, Heard] = Field(default_factory=dict, description="segments, the gone ones included while their links are of use")

    def missing(self, devices: Iterable[str], now: datetime) -> "Recall":
        """With the devices that are gone now, each since when it is."""
        known = {device: min(now, self.devices_gone.get(device, now)) for device in sorted(devices)}
        return self if known == self.devices_gone else self.model_copy(update={"devices_gone": known})

    def awaited(self, now: datetime, grace: timedelta) -> frozenset[str]:
        """Devices that are gone, and not for long."""
        return frozenset(device for device, since in self.devices_gone.items() if now - since < grace)

    def moved(self, now: datetime) -> "Recall":
        """With one more move."""
        return self.model_copy(update={"moves": (*self.moves, now)[-_MOST_MOVES:]})

    def failed(self, segments: Sequence[SegmentPod], wanted: frozenset[str], now: datetime) -> "Recall":
        """With the failures that these segments show; those of long ago are forgotten."""
        failures = {node: entry for node, entry in self.failures.items() if abs(now - entry.last) < 2 * entry.avoided}
        for pod in segments:
            node, failing = pod.segment.node, pod.lasting or (pod.segment.why if pod.segment.phase is Phase.FAILED else "")
            before = failures.get(node)
            if pod.segment.phase is Phase.PROVEN and before is not None and before.lasting and _same_pod(before.key, pod.proof_key):
                del failures[node]  # it did start in the end: what stood in the way is gone
                continue
            if pod.name not in wanted or not failing:
                continue
            if before is not None and before.key == pod.proof_key and before.count >= _ENOUGH and before.counts(now):
                continue
            if before is not None and before.key == pod.proof_key and not pod.lasting:
                continue
            again = before is not None and not before.counts(now)
            recent = None if again else before
            failures[node] = Failures(
                count=_ENOUGH if pod.lasting else (recent.count if recent else 0) + 1,
                first=recent.first if recent else now,
                last=now,
                why=failing,
                key=pod.proof_key,
                rounds=(before.rounds + 1 if again and before.count >= _ENOUGH else before.rounds) if before else 1,
                lasting=bool(pod.lasting),
            )
        return self.model_copy(update={"failures": failures})

    def rejecting(self, revision: str, now: datetime) -> "Recall":
        """With one more plan that a person rejected; those of long ago are forgotten."""
        kept = {plan: at for plan, at in self.rejected.items() if plan in self.rejected_now(now) and plan != revision}
        newest = sorted({**kept, revision: now}.items(), key=lambda entry: entry[1])[-_MOST_REJECTED:]
        return self.model_copy(update={"rejected": dict(newest)})

    def rejected_now(self, now: datetime) -> frozenset[str]:
        """Plans that are not proposed again yet. A clock that was set back does not make that last."""
        return frozenset(plan for plan, at in self.rejected.items() if abs(now - at) < REJECTED)

    def verified(
        self,
        failed: Mapping[str, FailedCheck],
        segments: Sequence[SegmentPod],
        now: datetime,
        verifiers: Mapping[str, str] = MappingProxyType({}),
    ) -> "Recall":
        """With the nodes of the segments whose checks failed; those of long ago are forgotten. `verifiers`: name to node of those who
        check, as one of two replicas may be wrong, too."""
        distrusted = {node: entry for node, entry in self.distrusted.items() if entry.counts(now)}
        where = {**verifiers, **{pod.name: pod.segment.node for pod in segments}}
        for segment, found in sorted(failed.items()):
            if (node := where.get(segment)) and node not in distrusted:
                why = (
                    f"{segment} gave a wrong output: relative error {found.error:.3g} of {found.tokens} tokens from token {found.position} "
                    f"of a sequence on, the limit is {found.limit:.3g}"
                )
                distrusted[node] = Distrust(since=now, why=why)
        return self if distrusted == self.distrusted else self.model_copy(update={"distrusted": distrusted})

    def distrusted_now(self, now: datetime) -> Mapping[str, str]:
        """Nodes that are avoided because an output was wrong, and what was found."""
        return {
            node: f"{entry.why}; the node is avoided until {stamp_of(entry.since + DISTRUSTED)}"
            for node, entry in self.distrusted.items()
            if entry.counts(now)
        }

    def hearing(self, speakers: Iterable[Speaker], now: datetime, keep: timedelta) -> "Recall":
        """With the segments that are there now; those that are gone are kept for so long, and no more than so many."""
        there = {s.name: Heard(node=s.node, addresses=tuple(sorted(s.addresses))) for s in speakers if s.segment and s.addresses}
        left = {name: entry if entry.gone else entry.model_copy(update={"gone": now}) for name, entry in self.heard.items()}
        gone = [(name, entry) for name, entry in left.items() if name not in there and entry.gone and abs(now - entry.gone) < keep]
        newest = sorted(gone, key=lambda item: item[1].gone or now)[-_MOST_GONE:]
        return self.model_copy(update={"heard": {**dict(newest), **there}})

    def gone_speakers(self, namespace: str) -> Mapping[tuple[str, str], tuple[Speaker, datetime]]:
        """Segments that are gone, as whose series are still believed, and since when."""
        return {
            (namespace, name): (Speaker(namespace, name, entry.node, frozenset(entry.addresses), segment=True), entry.gone)
            for name, entry in self.heard.items()
            if entry.gone is not None
        }

    def quarantined(self, now: datetime) -> Mapping[str, str]:
        """Nodes that no new plan should use for a while, and why: segments failed there often, or gave a wrong output."""
        failing = {node: _words(entry) for node, entry in self.failures.items() if entry.count >= _ENOUGH and entry.counts(now)}
        return {**failing, **self.distrusted_now(now)}

    def held_back(self, segments: Sequence[SegmentPod], now: datetime) -> Mapping[str, str]:
        """Failed segments that are not yet to be made again, and until when: the pause doubles with each failure on the node."""
        found = {}
        for pod in segments:
            entry = self.failures.get(pod.segment.node)
            if entry is None or entry.key != pod.proof_key or entry.count < 2:
                continue
            left = min(2.0 ** (entry.count - 1), _LONGEST_PAUSE_SECONDS) - (now - entry.last).total_seconds()
            if left > 0:
                found[pod.name] = "made again soon"
        return found

    def as_status(self) -> dict[str, Any]:
        """As JSON for status.adaptation."""
        dumped: dict[str, Any] = self.model_dump(mode="json", exclude_defaults=True)
        return dumped


def read_recall(status: Mapping[str, Any]) -> Recall:
    """From the status; empty where there is none, or none that can be read."""
    try:
        return Recall.model_validate(status.get("adaptation") or {})
    except ValidationError:
        return Recall()


def stamp_of(moment: datetime) -> str:
    """Date and time to the minute, UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _same_pod(one: str, other: str) -> bool:
    return one.partition("/")[0] == other.partition("/")[0]


def _words(entry: Failures) -> str:
    avoided = f"the node is avoided until {entry.last + entry.avoided:%H:%M:%S}"
    if entry.lasting:
        return f"a segment does not start there: {entry.why}; {avoided}"
    return f"{entry.count} failures since {entry.first:%H:%M:%S}, last: {entry.why}; {avoided}"
