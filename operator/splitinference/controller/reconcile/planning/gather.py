"""All that one pass reads, read once, and made into what the core understands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.figures.series_owners import speakers_of
from splitinference.controller.cluster_state.node_devices import gone_devices, waiting_for
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.cluster_state.segment_pods import Known, SegmentPod, read_segments
from splitinference.controller.cluster_state.segment_probes import Proofs, Prover
from splitinference.controller.cluster_state.shared_snapshot import Sight
from splitinference.controller.cluster_state.snapshot import NOBODY_YIELDS, Reading, Sources, Yielding, read_snapshot
from splitinference.controller.history.adaptation_state import Recall, read_recall
from splitinference.controller.history.calibration import Calibration, read_calibration
from splitinference.controller.identity import owner_of_body
from splitinference.controller.kube_values.clock_skew import not_after
from splitinference.controller.kube_values.machine import leaving
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.kube_values.start_failures import USUAL, Limits, Told
from splitinference.controller.manifests.gateway import GATEWAY, gateway_name, route_name
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.route import Stored, is_asleep, is_withdrawn, old_routes, read_route
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Listing, Manifest, Ports
from splitinference.controller.reconcile.planning.plan_pass import with_room, without_route
from splitinference.controller.reconcile.planning.rooms import rooms_of
from splitinference.controller.reconcile.planning.second_copies import verifier_nodes
from splitinference.core.transition.state import Observed
from splitinference.core.values.room import Room
from splitinference.settings import Settings
from splitinference_protocol.report import GatewayReport


@dataclass(frozen=True)
class Seen:
    """What one pass read. `stopped`: the route was withdrawn, because what served broke a rule of privacy; `asleep`: it says that the model
    is unloaded; `wanted`: the plan's segments; `observed`: what the walk goes by; `rooms`: what other pods than segments need;
    `segment_millicores`: CPU request of each segment; `leaving`: nodes with pods of ours that are about to leave; `warnings`: the newest
    event about a pod, by uid; `preempted`: nodes where resources of a higher priority need the plan's memory, and who."""

    now: datetime
    body: Manifest
    nodes: Listing
    pods: Listing
    owned: Sequence[Manifest]
    measured: Measured
    reading: Reading
    stored: Stored | None
    report: GatewayReport | None
    stopped: bool
    asleep: bool
    segments: tuple[SegmentPod, ...]
    recall: Recall
    calibration: Calibration
    observed: Observed
    wanted: frozenset[str] = frozenset()
    deployment: Manifest | None = None
    rooms: tuple[Room, ...] = ()
    segment_millicores: int = 0
    leaving: frozenset[str] = frozenset()
    limits: Limits = USUAL
    warnings: Mapping[str, str] = field(default_factory=dict)
    preempted: Mapping[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> tuple[str, str]:
        """Namespace and name of the resource."""
        return owner_of(self.body)

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as it was before the pass."""
        found: Mapping[str, Any] = self.body.get("status") or {}
        return found

    @property
    def gateways(self) -> Sequence[Manifest]:
        """The gateway's pods."""
        return gateway_pods(self.owned)

    @property
    def lost(self) -> Mapping[str, str]:
        """Nodes out of reach, as long as the segments are there that show it: gone when their kubelet is back and ends them."""
        return {pod.segment.node: pod.lost for pod in self.segments if pod.lost}

    def without_route(self) -> "Seen":
        """Once the serving route was withdrawn."""
        return replace(self, stored=None, stopped=True, observed=without_route(self.observed))

    def with_reading(self, reading: Reading) -> "Seen":
        """With a newer snapshot of the same nodes and pods."""
        return replace(self, reading=reading, observed=with_room(self.observed, reading.snapshot))


def owner_of(body: Manifest) -> tuple[str, str]:
    """Namespace and name."""
    return str(body["metadata"].get("namespace", "")), str(body["metadata"]["name"])


def gateway_pods(owned: Sequence[Manifest]) -> Sequence[Manifest]:
    """Those of a resource's pods that are its gateway's."""
    return [pod for pod in owned if labels_of(pod).get(COMPONENT) == GATEWAY]


def observed_of(
    segments: Sequence[SegmentPod], stored: Stored | None, report: GatewayReport | None, gateways: Sequence[Manifest], now: datetime
) -> Observed:
    """What the walk goes by, but for the room on nodes."""
    runs = any((pod.get("status") or {}).get("phase") == "Running" for pod in gateways)
    return Observed(
        segments={pod.name: pod.segment for pod in segments},
        serving=stored.route if stored else None,
        old_routes=old_routes(stored, report, runs, now),
    )


@dataclass(frozen=True)
class Looker:
    """Reads, for one resource."""

    ports: Ports
    settings: Settings
    body: Manifest
    sight: Sight
    told: Told = field(default_factory=Told)

    def look(self, resources: Listing, wanted: frozenset[str], proofs: Proofs) -> tuple[Seen, Proofs]:
        """Read everything else than `resources`; prove what is ready. `wanted`: the names of the plan's segments."""
        cluster, (namespace, name) = self.ports.cluster, owner_of(self.body)
        now, nodes, pods = self.ports.clock.now(), cluster.nodes(), cluster.pods()
        if self.ports.benchmarks is not None:
            nodes = self.ports.benchmarks.shown(nodes)
        recall = not_after(read_recall(self.body.get("status") or {}), now)
        self.sight.remember(recall.gone_speakers(namespace))
        measured = self.sight.measured((namespace, name), (nodes, pods), self.ports.metrics, self.ports.clock)
        identified = owner_of_body(self.body)
        report = self.ports.gateways.routes(identified)
        owned = cluster.owned("Pod", namespace, name)
        usable = self.sight.picture(nodes, pods, measured).standing.usable
        owner = str(self.body["metadata"].get("uid", ""))
        limits, warnings = Limits.of(self.settings), self._warnings(owned, wanted, now)
        known = Known(now=now, usable=usable, owner=owner, wanted=wanted, proven=proofs.proven, limits=limits, warnings=warnings)
        prover = Prover(port=self.ports.segments, owner=identified, now=now)
        failing = {segment: found.since for segment, found in report.failing.items()} if report else {}
        proofs = prover.prove(proofs, read_segments(owned, known), failing)
        known = replace(known, proven=proofs.proven, broken=proofs.broken(now), lost=proofs.lost(now))
        segments = read_segments(owned, known)
        keep = timedelta(seconds=self.settings.link_max_age_seconds)
        recall = recall.failed(segments, wanted, now).hearing(speakers_of(owned, self.settings.operator_namespace), now, keep)
        recall = recall.verified(report.verification.failed if report else {}, segments, now, verifier_nodes(owned))
        if held_back := recall.held_back(segments, now):
            segments = read_segments(owned, replace(known, held_back=held_back))
        maps = cluster.owned("ConfigMap", namespace, name)
        route = next((found for found in maps if found["metadata"]["name"] == route_name(name)), None)
        stored, reading = read_route(route), self.read(now, nodes, pods, measured, resources)
        recall = recall.missing(gone_devices(reading.snapshot), now)
        reading = self.awaiting(reading, recall, now)
        observed = observed_of(segments, stored, report, gateway_pods(owned), now)
        deployment = self._deployment(namespace, name)
        seen = Seen(
            now=now,
            body=self.body,
            nodes=nodes,
            pods=pods,
            owned=owned,
            measured=measured,
            reading=reading,
            stored=stored,
            report=report,
            stopped=is_withdrawn(route),
            asleep=is_asleep(route),
            segments=segments,
            recall=recall,
            calibration=not_after(read_calibration(self.body.get("status") or {}), now),
            observed=with_room(observed, reading.snapshot),
            wanted=wanted,
            deployment=deployment,
            rooms=rooms_of(deployment, gateway_pods(owned), now, self.settings),
            segment_millicores=int(1000 * (quantity(self.settings.segment_cpu_request) or 0)),
            leaving=self._leaving(nodes, owned),
            limits=limits,
            warnings=warnings,
        )
        return seen, proofs

    def _leaving(self, nodes: Listing, owned: Sequence[Manifest]) -> frozenset[str]:
        """Nodes with pods of ours that are about to leave the cluster."""
        ours = {str((pod.get("spec") or {}).get("nodeName", "")) for pod in owned}
        return frozenset(name for name in ours if name in nodes.named and leaving(nodes.named[name], self.settings))

    def _deployment(self, namespace: str, name: str) -> Manifest | None:
        there = self.ports.cluster.owned("Deployment", namespace, name)
        return next((found for found in there if found["metadata"]["name"] == gateway_name(name)), None)

    def _warnings(self, owned: Sequence[Manifest], wanted: frozenset[str], now: datetime) -> Mapping[str, str]:
        """What events say of the plan's segments and of the gateway's pods where their status says nothing."""
        asked = [(pod, SEGMENT) for pod in owned if labels_of(pod).get(COMPONENT) == SEGMENT and pod["metadata"]["name"] in wanted]
        asked += [(pod, GATEWAY) for pod in owned if labels_of(pod).get(COMPONENT) == GATEWAY]
        return self.told.warnings(asked, now, self.ports.cluster.pod_warning)

    def awaiting(self, reading: Reading, recall: Recall, now: datetime) -> Reading:
        """The reading in which devices that are gone for a moment are still there, as while their plugin is started anew."""
        awaited = recall.awaited(now, timedelta(seconds=self.settings.device_grace_seconds))
        return replace(reading, snapshot=waiting_for(reading.snapshot, awaited, self.settings)) if awaited else reading

    def read(
        self,
        now: datetime,
        nodes: Listing,
        pods: Listing,
        measured: Measured,
        resources: Listing,
        *,
        yielding: Yielding = NOBODY_YIELDS,
    ) -> Reading:
        """The snapshot, with what the plans of the other `resources` hold, but for those who are `yielding`."""
        owner, picture = owner_of(self.body), self.sight.picture(nodes, pods, measured)
        held = self.sight.held(resources, picture.standing)
        sources = Sources(
            now=now,
            nodes=nodes,
            pods=pods,
            measured=measured,
            held=held.by_others_than(owner, yielding),
            owner=owner,
            picture=picture,
            yielding=yielding,
            held_devices=held.devices_of_others_than(owner, yielding),
        )
        return read_snapshot(sources, self.settings)
