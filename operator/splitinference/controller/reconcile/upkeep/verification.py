"""Verifiers: which segments are checked, where the same layers run a second time, and what the gateway is told of it.

Segments side by side on nodes that are not trusted are checked together: by one pod on a trusted node, or with two replicas by one on any
other node and a referee on a third. The planner leaves room for them where it can. Where there is none, the model is served unchecked, and
the condition Verified says so with the numbers.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from splitinference.controller.api.conditions import Condition, Kind
from splitinference.controller.api.sections.privacy_spec import TOLERANCES
from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.pods import labels_of, node_of
from splitinference.controller.kube_values.start_failures import hindrance, is_ready
from splitinference.controller.manifests.network_policies import verifiers_policy
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.route import ROUTE_KEY, with_verification
from splitinference.controller.manifests.segment import SEGMENT, VERIFIER
from splitinference.controller.plan_io.plan_status import Built, Planned
from splitinference.controller.ports import Manifest, Ports, RefusedError, SegmentObjects
from splitinference.controller.reconcile.planning.desired import Asked
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.planning.second_copies import second_copies, verifier_nodes, verifier_pods
from splitinference.core.cost.checks.eligible import label_words
from splitinference.core.cost.checks.second_copies import Run, Short, places
from splitinference.core.cost.stage import memory_bytes
from splitinference.core.transition.state import NamedSegment
from splitinference.core.values.cluster import Node
from splitinference.core.values.plan import Segment
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile
from splitinference.core.values.room import Free, SecondCopies
from splitinference_protocol import route
from splitinference_protocol.route import Verification
from splitinference_protocol.wire.request import Hop


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


Placed = tuple[Check, tuple[SegmentObjects, ...]]
"""A check with its verifier, or with its replica and referee."""


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
        copies = second_copies(
            self.resource.spec, self.seen.owned, self.seen.recall.distrusted_now(self.seen.now), self.seen.segment_millicores
        )
        assert copies is not None  # noqa: S101 - there is a spec.verification
        free = _free(planned, copies, problem)
        placed = [self._placed(check, copies, problem, pods, free) for check in found]
        short = [str(each) for each in placed if isinstance(each, Short)]
        made = [each for each in placed if not isinstance(each, Short)]
        every = [objects for _, copied in made for objects in copied]
        self._delete(pods, keep=tuple(objects.name for objects in every))
        there = {str(pod["metadata"]["name"]): pod for pod in pods}
        for objects in every:
            self._ensure(objects, there)
        waiting = [objects for objects in every if not is_ready(there.get(objects.name, {}), SEGMENT)]
        self._tell(self._document([each for each in made if not set(names(each[1])) & set(names(waiting))]))
        waits = [self._wait(objects, there) for objects in waiting]
        return Kept(self._condition(found, len(every), waits, short), tuple(self._refused))

    def _wait(self, objects: SegmentObjects, there: Mapping[str, Manifest]) -> str:
        """What a verifier waits for, in words."""
        pod = there.get(objects.name)
        where = f"{objects.name} on {node_of(objects.pod)}"
        hindered = hindrance(pod, SEGMENT, self.seen.now, self.seen.limits, "") if pod is not None else None
        return f"{where}: {hindered.text}" if hindered is not None else f"{where} is starting"

    def _pods(self) -> list[Manifest]:
        return list(verifier_pods(self.seen.owned))

    def _placed(self, check: Check, wanted: SecondCopies, problem: Problem, pods: Sequence[Manifest], free: Free) -> Placed | Short:
        """The objects of all who compute the checked layers again; or what has no room. They stay where they are, if they can."""
        layers = f"{check.start}-{check.end}"
        stays = {node_of(pod) for pod in pods if labels_of(pod).get("splitinference.dev/layers") == layers}
        run = Run(check.start, check.end, frozenset(segment.node for segment in check.checked))
        found = places(run, wanted, problem, free, stays)
        if isinstance(found, Short):
            return found
        kv = self.profile.kv_bytes_per_token(check.start, check.end)
        tokens = problem.workload.max_concurrent_sequences * problem.workload.max_context_tokens
        needed = memory_bytes(problem, check.start, check.end)
        segments = (Segment(start=check.start, end=check.end, node=name) for name in found)
        made = self.ports.builder
        return check, tuple(made.verifier(self.planned_for, self.profile, segment, needed, kv * tokens) for segment in segments)

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
            self._refused.append(f"the deletion of the NetworkPolicy {name} was refused: {error}")

    def _document(self, ready: Sequence[Placed]) -> Verification:
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
                    verifier=Hop(copies[0].name, copies[0].model),
                    referee=Hop(copies[1].name, copies[1].model) if len(copies) > 1 else None,
                )
                for check, copies in ready
                if {hop.name for hop in (check.before, check.after) if hop} <= models.keys()
            ),
            distrusted=tuple(sorted(name for name, node in self._nodes_of_all() if node in distrusted)),
        )

    def _nodes_of_all(self) -> Iterator[tuple[str, str]]:
        """Segments and verifiers, with their nodes."""
        yield from ((pod.name, pod.segment.node) for pod in self.seen.segments)
        yield from verifier_nodes(self.seen.owned).items()

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
            self._refused.append(f"the route with the checks was refused: {error}")

    def _condition(self, found: Sequence[Check], wanted: int, waits: Sequence[str], short: Sequence[str]) -> Condition:
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
            message = f"{wanted - len(waits)} of {wanted} verifiers are ready; {'; '.join(waits)}"
            return Condition(kind=kind, holds=None, reason="VerifierStarting", message=message)
        spec = self.resource.spec.verification
        percent, replicas = (spec.sample_percent, spec.replicas) if spec else (0, 1)
        how = f"{percent:g} % of all sequences are checked" if replicas == 1 else "every step is computed on two nodes"
        message = f"{how} in {number} segments that run on nodes that are not trusted"
        return Condition(kind=kind, holds=True, reason="SegmentsAreChecked", message=message)


def names(copies: Iterable[SegmentObjects]) -> tuple[str, ...]:
    """Of these pods."""
    return tuple(objects.name for objects in copies)


def _free(planned: Planned, copies: SecondCopies, problem: Problem) -> Free:
    """What the plan leaves, and what verifiers hold already."""

    def left(node: Node) -> tuple[int, float]:
        segments = [segment for segment in planned.plan.segments if node.name in segment.nodes]
        cores = float("inf") if node.millicores_free is None else float(node.millicores_free)
        return node.memory_free_bytes - _planned_bytes(planned, node.name), cores - copies.millicores * len(segments)

    return copies.without({node.name: left(node) for node in problem.snapshot.nodes})


def _planned_bytes(planned: Planned, node: str) -> int:
    """Memory of the plan's segments on the node."""
    prediction = planned.plan.prediction
    stages = prediction.stages if prediction is not None else ()
    return sum(stage.memory_bytes for segment, stage in zip(planned.plan.segments, stages, strict=True) if node in segment.nodes)
