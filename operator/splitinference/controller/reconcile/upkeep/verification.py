"""Verifiers: which segments are checked, where the same layers run a second time, and what the gateway is told of it.

Segments side by side on nodes that are not trusted are checked together, by one pod on a trusted node. The planner does not know of it: a
verifier takes memory that the plan leaves on trusted nodes. Where there is none, the model is served unchecked, and the condition Verified
says so with the numbers.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.sections.privacy_spec import TOLERANCES
from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.pods import labels_of, node_of, requested_bytes
from splitinference.controller.kube_values.start_failures import hindrance, is_ready
from splitinference.controller.manifests.network_policies import verifiers_policy
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.route import ROUTE_KEY, with_verification
from splitinference.controller.manifests.segment import SEGMENT, VERIFIER
from splitinference.controller.plan_io.plan_status import Built, Planned
from splitinference.controller.ports import Manifest, Ports, RefusedError, SegmentObjects
from splitinference.controller.reconcile.planning.desired import Asked
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.cost.checks.eligible import label_words, unusable
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.transition.state import NamedSegment
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Segment
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile
from splitinference_protocol import route
from splitinference_protocol.route import Verification
from splitinference_protocol.wire.request import Hop

_MIB = 1024 * 1024


@dataclass(frozen=True)
class Check:
    """Segments side by side on nodes that are not trusted, and their neighbours, which are; `before`: None where they begin the model."""

    checked: tuple[NamedSegment, ...]
    before: NamedSegment | None
    after: NamedSegment

    @property
    def start(self) -> int:
        """First layer."""
        return self.checked[0].start

    @property
    def end(self) -> int:
        """Layer behind the last."""
        return self.checked[-1].end


@dataclass(frozen=True)
class Kept:
    """What came of a pass. `refused`: what the API server did not take."""

    condition: Condition | None = None
    refused: tuple[str, ...] = ()


def is_trusted(node: Node | None, labels: Mapping[str, str]) -> bool:
    """Whether the node has all labels of trusted nodes."""
    return node is not None and all(node.labels.get(key) == value for key, value in labels.items())


def without_trusted_node(asked: Asked | Condition, seen: Seen) -> Asked | Condition:
    """The same; or, where verification is asked for and no node is trusted, why it is refused."""
    if not isinstance(asked, Asked) or asked.resource.spec.verification is None:
        return asked
    labels, nodes = asked.resource.spec.privacy.trusted_node_labels, seen.reading.snapshot.nodes
    if any(is_trusted(node, labels) for node in nodes):
        return asked
    message = (
        f"spec.verification needs a trusted node, and none of {len(nodes)} nodes has the labels {label_words(labels)} "
        "(spec.privacy.trustedNodeLabels). Label a node that you trust, or remove spec.verification"
    )
    return Condition(kind=Kind.ACCEPTED, holds=False, reason="NoTrustedNode", message=message)


def checks_of(pipelines: Sequence[Sequence[NamedSegment]], nodes: Mapping[str, Node], labels: Mapping[str, str]) -> tuple[Check, ...]:
    """All runs of segments that have to be checked. One that ends the model has no witness, and is none: the plan's rules forbid it."""
    found: list[_Open] = []
    for pipeline in pipelines:
        before: NamedSegment | None = None
        for trusted, run in itertools.groupby(pipeline, key=lambda segment: is_trusted(nodes.get(segment.node), labels)):
            segments = tuple(run)
            if trusted:
                if found and found[-1].after is None:
                    found[-1] = _Open(found[-1].checked, found[-1].before, segments[0])
                before = segments[-1]
            else:
                found.append(_Open(segments, before, None))
    return tuple(Check(each.checked, each.before, each.after) for each in found if each.after is not None)


@dataclass(frozen=True)
class _Open:
    checked: tuple[NamedSegment, ...]
    before: NamedSegment | None
    after: NamedSegment | None


@dataclass
class Verifiers:
    """Keeps the verifiers of one resource. `planned_for` is the resource as it was when the plan was made; `has_policies`: the operator
    makes NetworkPolicies, and may read them."""

    ports: Ports
    planned_for: Resource
    profile: Profile
    resource: Resource
    seen: Seen
    has_policies: bool = True
    _refused: list[str] = field(default_factory=list)

    def keep(self, planned: Planned, built: Built, problem: Problem) -> Kept:
        """Have a verifier for each check and no others, tell the gateway of those that are ready, and say how it stands.

        For a plan that serves: while a transition is under way its segments may need the memory. Each step may be done twice.
        """
        wanted = self.resource.spec.verification
        pods = self._pods()
        if wanted is None:
            self._delete(pods, keep=())
            self._tell(None)
            self._delete_policy()
            return Kept(refused=tuple(self._refused))
        labels = self.resource.spec.privacy.trusted_node_labels
        nodes = {node.name: node for node in problem.snapshot.nodes}
        found = checks_of([list(pipeline) for pipeline in built.target.pipelines], nodes, labels)
        made: list[tuple[Check, SegmentObjects]] = []
        short: list[str] = []
        taken: dict[str, int] = {}
        for check in found:
            placed = self._placed(check, planned, problem, pods, taken)
            if isinstance(placed, str):
                short.append(placed)
            else:
                made.append((check, placed))
        self._delete(pods, keep=tuple(objects.name for _, objects in made))
        there = {str(pod["metadata"]["name"]): pod for pod in pods}
        for _, objects in made:
            self._ensure(objects, there)
        ready = [(check, objects) for check, objects in made if is_ready(there.get(objects.name, {}), SEGMENT)]
        self._tell(self._document(ready))
        waits = [self._wait(objects, there) for check, objects in made if (check, objects) not in ready]
        return Kept(self._condition(found, waits, short), tuple(self._refused))

    def _wait(self, objects: SegmentObjects, there: Mapping[str, Manifest]) -> str:
        """What a verifier waits for, in words."""
        pod = there.get(objects.name)
        where = f"{objects.name} on {node_of(objects.pod)}"
        hindered = hindrance(pod, SEGMENT, self.seen.now, self.seen.limits, "") if pod is not None else None
        return f"{where}: {hindered.text}" if hindered is not None else f"{where} is starting"

    def _pods(self) -> list[Manifest]:
        mine = (pod for pod in self.seen.owned if labels_of(pod).get(COMPONENT) == VERIFIER)
        return [pod for pod in mine if not pod["metadata"].get("deletionTimestamp")]

    def _placed(
        self, check: Check, planned: Planned, problem: Problem, pods: Sequence[Manifest], taken: dict[str, int]
    ) -> SegmentObjects | str:
        """The verifier's objects on the trusted node with the most room, or where it is already; or why there is none, in words."""
        labels = self.resource.spec.privacy.trusted_node_labels
        needed = memory_bytes(problem, check.start, check.end)
        rooms = []
        for node in problem.snapshot.nodes:
            if not is_trusted(node, labels) or unusable(node, problem):
                continue
            mine = [pod for pod in pods if node_of(pod) == node.name]
            free = node.memory_free_bytes + sum(map(requested_bytes, mine)) - _planned_bytes(planned, node.name) - taken.get(node.name, 0)
            layers = f"{check.start}-{check.end}"
            stays = any(labels_of(pod).get("splitinference.dev/layers") == layers for pod in mine)
            rooms.append((stays and free >= needed, free, node.name))
        stays, free, name = max(rooms, default=(False, 0, ""))
        if not rooms or free < needed:
            where = f"{name} has the most, {max(0, free) // _MIB} MiB" if name else "no trusted node can be used"
            return f"layers {check.start} to {check.end} need {-(-needed // _MIB)} MiB on a trusted node: {where}"
        taken[name] = taken.get(name, 0) + needed
        kv = self.profile.kv_bytes_per_token(check.start, check.end)
        tokens = problem.workload.max_concurrent_sequences * problem.workload.max_context_tokens
        segment = Segment(start=check.start, end=check.end, node=name)
        return self.ports.builder.verifier(self.planned_for, self.profile, segment, needed, kv * tokens)

    def _ensure(self, objects: SegmentObjects, there: Mapping[str, Manifest]) -> None:
        try:
            services = {found["metadata"]["name"] for found in self.ports.cluster.owned("Service", *self.seen.owner)}
            if objects.name not in services:
                self.ports.cluster.apply(objects.service)
            if objects.name not in there:
                self.ports.cluster.create(objects.pod)
        except RefusedError as error:
            self._refused.append(f"the verifier {objects.name} was refused: {error}")

    def _delete(self, pods: Sequence[Manifest], keep: Sequence[str]) -> None:
        for pod in pods:
            if (name := str(pod["metadata"]["name"])) not in keep:
                self.ports.cluster.delete("Pod", self.seen.owner[0], name)
                self.ports.cluster.delete("Service", self.seen.owner[0], name)

    def _delete_policy(self) -> None:
        """Once the last verifier is gone: until then it protects those that end. A plan that was made for a resource with verifiers has it
        among the gateway's objects."""
        (namespace, owner), kind = self.seen.owner, "NetworkPolicy"
        needed = self.planned_for.spec.verification is not None or any(labels_of(pod).get(COMPONENT) == VERIFIER for pod in self.seen.owned)
        if needed or not self.has_policies:
            return
        name = verifiers_policy(owner)
        try:
            if any(found["metadata"]["name"] == name for found in self.ports.cluster.owned(kind, namespace, owner)):
                self.ports.cluster.delete(kind, namespace, name)
        except RefusedError as error:
            self._refused.append(f"to delete the NetworkPolicy {name} was refused: {error}")

    def _document(self, ready: Sequence[tuple[Check, SegmentObjects]]) -> Verification:
        """`verification` of the route document, as docs/reference/data-plane.md has it."""
        spec = self.resource.spec
        assert spec.verification is not None  # noqa: S101 - what the caller has checked
        models = dict(self.seen.stored.models) if self.seen.stored else {}
        distrusted = self.seen.recall.distrusted_now(self.seen.now)
        return Verification(
            sample_percent=spec.verification.sample_percent,
            tolerance=spec.verification.tolerance or TOLERANCES[spec.model.dtype],
            checks=tuple(
                route.Check(
                    segments=tuple(segment.name for segment in check.checked),
                    before=Hop(check.before.name, models[check.before.name]) if check.before else None,
                    after=Hop(check.after.name, models[check.after.name]),
                    verifier=Hop(objects.name, objects.model),
                )
                for check, objects in ready
                if {hop.name for hop in (check.before, check.after) if hop} <= models.keys()
            ),
            distrusted=tuple(sorted(pod.name for pod in self.seen.segments if pod.segment.node in distrusted)),
        )

    def _tell(self, verification: Verification | None) -> None:
        """Write it into the route, if it is not there."""
        stored = self.seen.stored
        if stored is None:
            return
        cluster, name = self.ports.cluster, str(self.ports.builder.route(self.planned_for, {})["metadata"]["name"])
        found = next((each for each in cluster.owned("ConfigMap", *self.seen.owner) if each["metadata"]["name"] == name), None)
        data: Mapping[str, str] = (found or {}).get("data") or {}
        wanted = with_verification(data, verification)
        if found is None or ROUTE_KEY not in data or wanted == data:
            return
        try:
            cluster.apply(self.ports.builder.route(self.planned_for, wanted))
        except RefusedError as error:
            self._refused.append(f"the route with what is verified was refused: {error}")

    def _condition(self, found: Sequence[Check], waits: Sequence[str], short: Sequence[str]) -> Condition:
        kind, now = Kind.VERIFIED, self.seen.now
        if distrusted := self.seen.recall.distrusted_now(now):
            message = "; ".join(f"{node}: {why}" for node, why in sorted(distrusted.items()))
            return Condition(kind=kind, holds=False, reason="VerificationFailed", message=message)
        if short:
            return Condition(kind=kind, holds=False, reason="NoRoomForVerifier", message="; ".join(short))
        if not found:
            return Condition(kind=kind, holds=True, reason="NothingToVerify", message="all segments run on trusted nodes")
        number = sum(len(check.checked) for check in found)
        if waits:
            message = f"{len(found) - len(waits)} of {len(found)} verifiers are ready; {'; '.join(waits)}"
            return Condition(kind=kind, holds=None, reason="VerifierStarting", message=message)
        percent = self.resource.spec.verification.sample_percent if self.resource.spec.verification else 0
        message = f"{percent:g} % of all sequences are checked in {number} segments that run on nodes that are not trusted"
        return Condition(kind=kind, holds=True, reason="SegmentsAreChecked", message=message)


def _planned_bytes(planned: Planned, node: str) -> int:
    """Memory of the plan's segments on the node."""
    prediction = planned.plan.prediction
    stages = prediction.stages if prediction is not None else ()
    return sum(stage.memory_bytes for segment, stage in zip(planned.plan.segments, stages, strict=True) if node in segment.nodes)
