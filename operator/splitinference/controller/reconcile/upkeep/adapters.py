"""Adapters come and go while the segments serve: a short-lived pod gives each segment that lacks one its part, and then the route names it.

What segments hold is asked of them, and is all the memory that there is: a segment that was started anew, or is new, lacks adapters, and is
given them. Clients may name an adapter once all segments that serve have it; from then on requests wait where a segment lacks it for a
moment. A removed one leaves the route at once, and the segments when no sequence runs with it any more.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from splitinference.controller.api.adapter_spec import AdapterSpec
from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.cluster_state.segment_pods import SegmentPod
from splitinference.controller.identity import owner_of_body
from splitinference.controller.kube_values.start_failures import ended_with, hindrance
from splitinference.controller.manifests.adapter_loader import ADAPTER_LABEL, LOADER
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.manifests.route import ROUTE_KEY, with_adapters
from splitinference.controller.plan_io.adapter_status import AdapterStatus, Outcome, Read, read_adapters, served, source_hash
from splitinference.controller.ports import Manifest, Ports, RefusedError
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.core.transition.state import Phase
from splitinference.core.values.profile import LayerKind, Profile
from splitinference_protocol.route import NamedAdapter
from splitinference_protocol.wire.request import Hop

ASK_AGAIN = timedelta(seconds=10)
"""What a segment holds is asked again after so long, although nothing speaks against it."""
LATEST = timedelta(seconds=60)
"""A new segment without its adapters joins the route after so long: the model does not wait for an adapter that cannot be had."""


@dataclass
class Told:
    """What segments said that they hold, by the key of their process; and since when those that serve nothing yet are proven."""

    held: dict[str, tuple[datetime, frozenset[str]]] = field(default_factory=dict)
    proven_since: dict[str, datetime] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)


@dataclass
class AdapterKeeper:
    """Keeps the adapters of one resource, as it asks for them now (None: what it asks for cannot be worked with, so all stays)."""

    ports: Ports
    resource: Resource | None
    seen: Seen
    told: Told
    wanted: Collection[str] = ()
    retry: timedelta = timedelta(seconds=120)
    _refused: list[str] = field(default_factory=list)

    @property
    def before(self) -> dict[str, AdapterStatus]:
        """As the status has them, those that are still asked for, of the same source."""
        known = read_adapters(self.seen.status)
        if self.resource is None:
            return known
        asked = {adapter.name: source_hash(adapter) for adapter in self.resource.spec.adapters}
        return {name: found for name, found in known.items() if asked.get(name) == found.source}

    @property
    def idle(self) -> bool:
        """There are no adapters, and there were none."""
        asked = self.resource is not None and bool(self.resource.spec.adapters)
        return not asked and not read_adapters(self.seen.status) and not self._loaders()

    def held_back(self) -> Seen:
        """The same as is seen, but for segments that are proven, serve nothing yet, and lack an adapter that clients name: they are not
        ready for the route, for a while."""
        needed = frozenset(adapter.digest for adapter in served(self.before))
        serving = self.seen.stored.route.names if self.seen.stored is not None else frozenset()
        proven = [pod for pod in self.seen.segments if pod.segment.phase is Phase.PROVEN]
        keys = {pod.proof_key for pod in self.seen.segments}
        self.told.proven_since = {key: since for key, since in self.told.proven_since.items() if key in keys}
        self.told.held = {key: told for key, told in self.told.held.items() if key in keys}
        if not needed or not serving:
            return self.seen
        waiting = set()
        for pod in proven:
            since = self.told.proven_since.setdefault(pod.proof_key, self.seen.now)
            if pod.name not in serving and self.seen.now - since < LATEST and not needed <= (self._held(pod) or frozenset()):
                waiting.add(pod.name)
        if not waiting:
            return self.seen
        why = "its adapters are being loaded"
        changed = {
            name: found.model_copy(update={"phase": Phase.READY, "why": why}) if name in waiting else found
            for name, found in self.seen.observed.segments.items()
        }
        pods = tuple(replace(pod, segment=changed.get(pod.name, pod.segment)) for pod in self.seen.segments)
        return replace(self.seen, segments=pods, observed=self.seen.observed.model_copy(update={"segments": changed}))

    def keep(self, profile: Profile) -> Outcome:
        """Have each adapter in each segment and in the route, and no others. Each step may be done twice."""
        resource = self.resource
        if resource is None:
            return Outcome(read_adapters(self.seen.status))
        there = self._there()
        held = {pod.name: self._held(pod) for pod in there}
        loaders, made = self._loaders(), dict[str, AdapterStatus]()
        blocks = sum(layer.kind is LayerKind.BLOCK for layer in profile.layers)
        for adapter in resource.spec.adapters:
            made[adapter.name] = self._one(resource, adapter, there, held=held, loaders=loaders, blocks=blocks)
        made |= self._leaving({adapter.name for adapter in resource.spec.adapters}, held)
        sources = {found.source for found in made.values() if found.state != "Removing"}
        for pod in loaders:
            if labels_of(pod).get(ADAPTER_LABEL) not in sources:
                self._delete(pod)
        self._tell(served(made))
        busy = any(found.state == "Loading" for found in made.values())
        if not busy and not any(ended_with(pod, LOADER) is None for pod in loaders):
            self._drop(made, there, held)
        return Outcome(made, tuple(self._refused), settled=not busy)

    def _leaving(self, asked: Collection[str], held: Mapping[str, frozenset[str] | None]) -> dict[str, AdapterStatus]:
        """Adapters that are no longer asked for, as long as a segment has them, or does not say."""
        found = {}
        for name, before in read_adapters(self.seen.status).items():
            digest = before.digest or before.previous
            if name not in asked and digest and any(each is None or digest in each for each in held.values()):
                change = {"state": "Removing", "serves": False, "previous": "", "digest": digest, "message": "sequences run with it"}
                found[name] = before.model_copy(update=change)
        return found

    def _there(self) -> list[SegmentPod]:
        """The segments that may be given adapters: those of the plan and of the route that answer."""
        serving = self.seen.stored.route.names if self.seen.stored is not None else frozenset()
        found = (pod for pod in self.seen.segments if pod.name in self.wanted or pod.name in serving)
        return sorted(
            (pod for pod in found if pod.ready and pod.ip and pod.segment.phase in (Phase.PROVEN, Phase.READY)), key=lambda p: p.name
        )

    def _held(self, pod: SegmentPod) -> frozenset[str] | None:
        known = self.told.held.get(pod.proof_key)
        if known is not None and timedelta(0) <= self.seen.now - known[0] < ASK_AGAIN:
            return known[1]
        found = self.ports.segments.adapters(owner_of_body(self.seen.body), pod.name, pod.model, pod.ip)
        if found is None:
            return known[1] if known is not None else None
        self.told.held[pod.proof_key] = self.seen.now, frozenset(found)
        return frozenset(found)

    def _loaders(self) -> list[Manifest]:
        mine = (pod for pod in self.seen.owned if labels_of(pod).get(COMPONENT) == LOADER)
        return [pod for pod in mine if not pod["metadata"].get("deletionTimestamp")]

    def _one(
        self,
        resource: Resource,
        adapter: AdapterSpec,
        there: Sequence[SegmentPod],
        *,
        held: Mapping[str, frozenset[str] | None],
        loaders: Sequence[Manifest],
        blocks: int,
    ) -> AdapterStatus:
        source = source_hash(adapter)
        before = self.before.get(adapter.name) or self._anew(adapter.name, source)
        own = [pod for pod in loaders if labels_of(pod).get(ADAPTER_LABEL) == source]
        ended = [(pod, found) for pod in own if (found := ended_with(pod, LOADER)) is not None]
        read = next((read for _, found in ended if (read := _read_of(found)) is not None), None)
        if read is not None:
            before = before.model_copy(update={"digest": read.digest, "rank": read.rank, "bytes": read.bytes})
        lacking = [
            pod for pod in there if held[pod.name] is not None and (not before.digest or before.digest not in (held[pod.name] or ()))
        ]
        have = sum(held[pod.name] is not None for pod in there) - len(lacking)
        serving = self.seen.stored.route.names if self.seen.stored is not None else frozenset()
        whole = bool(before.digest) and bool(serving) and serving <= {pod.name for pod in there} - {pod.name for pod in lacking}
        unknown = [pod for pod in there if held[pod.name] is None]
        state: dict[str, Any] = {"segments": f"{have}/{len(there)}", "serves": before.serves or (whole and not unknown), "message": ""}
        if there and not lacking and not unknown:
            for pod in own:
                self._delete(pod)
            self.told.tries.pop(adapter.name, None)
            state |= {"state": "Serving", "previous": ""} if state["serves"] else {"state": "Loading"}
            return before.model_copy(update=state)
        if running := [pod for pod in own if ended_with(pod, LOADER) is None]:
            return before.model_copy(update={**state, "state": "Loading", "message": self._progress(running[0], lacking)})
        failed = [(pod, found) for pod, found in ended if found.get("exitCode") != 0]
        if failed:
            pod, found = failed[0]
            if self._due(found):
                self._delete(pod)
                self.told.tries[adapter.name] = self.told.tries.get(adapter.name, 0) + 1
            return before.model_copy(update={**state, "state": "Failed", "message": _why(pod, found)})
        for pod, _ in ended:  # it gave the adapter to all that it was told of; what lacks it now is another
            self._delete(pod)
            self.told.held = {}
            return before.model_copy(update={**state, "state": "Loading", "message": "the segments are asked what they have"})
        if lacking:
            self._load(resource, adapter, source, lacking, blocks)
        names = ", ".join(pod.name for pod in lacking or unknown)
        message = f"to be given to {names}" if names else "no segment serves yet"
        return before.model_copy(update={**state, "state": "Loading", "message": message})

    def _anew(self, name: str, source: str) -> AdapterStatus:
        """An adapter of a new source. What had the name before keeps it until this one serves."""
        old = read_adapters(self.seen.status).get(name)
        previous = "" if old is None else old.digest if old.serves else old.previous
        return AdapterStatus(name=name, source=source, state="Loading", previous=previous)

    def _load(self, resource: Resource, adapter: AdapterSpec, source: str, lacking: Sequence[SegmentPod], blocks: int) -> None:
        targets, again = [Hop(pod.name, pod.model) for pod in lacking], self.told.tries.get(adapter.name, 0)
        nodes = {pod.segment.node for pod in self._there()}
        pod = self.ports.builder.adapter_loader(resource, adapter, source, targets=targets, nodes=nodes, blocks=blocks, again=again)
        try:
            self.ports.cluster.create(pod)
        except RefusedError as error:
            self._refused.append(f"the pod that loads the adapter {adapter.name} was refused: {error}")

    def _progress(self, pod: Manifest, lacking: Sequence[SegmentPod]) -> str:
        found = hindrance(pod, LOADER, self.seen.now, self.seen.limits, "")
        return found.text if found is not None else f"is being given to {', '.join(pod.name for pod in lacking)}"

    def _due(self, ended: Mapping[str, Any]) -> bool:
        """Whether to try again what failed."""
        try:
            at = datetime.fromisoformat(str(ended.get("finishedAt")))
        except ValueError:
            return True
        return self.seen.now - at >= self.retry

    def _delete(self, pod: Manifest) -> None:
        self.ports.cluster.delete("Pod", self.seen.owner[0], str(pod["metadata"]["name"]))

    def _tell(self, adapters: tuple[NamedAdapter, ...]) -> None:
        """Write them into the route, if they are not there."""
        if self.seen.stored is None or self.resource is None:
            return
        cluster, name = self.ports.cluster, str(self.ports.builder.route(self.resource, {})["metadata"]["name"])
        found = next((each for each in cluster.owned("ConfigMap", *self.seen.owner) if each["metadata"]["name"] == name), None)
        data: Mapping[str, str] = (found or {}).get("data") or {}
        wanted = with_adapters(data, adapters)
        if found is None or ROUTE_KEY not in data or wanted == data:
            return
        try:
            cluster.apply(self.ports.builder.route(self.resource, wanted))
        except RefusedError as error:
            self._refused.append(f"the route with the adapters was refused: {error}")

    def _drop(self, made: Mapping[str, AdapterStatus], there: Sequence[SegmentPod], held: Mapping[str, frozenset[str] | None]) -> None:
        """Let segments drop what is no longer asked for, and no sequence runs with. Without word from the gateway nothing is dropped."""
        report = self.seen.report
        if report is None or report.adapters is None or any(not found.digest for found in made.values()):
            return
        in_flight = {digest for digest, number in report.adapters.items() if number != 0}
        stays = [found for found in made.values() if found.state != "Removing"]
        keep = {digest for found in stays for digest in (found.digest, found.previous) if digest} | in_flight
        for pod in there:
            if (held[pod.name] or frozenset()) - keep:
                self.ports.segments.adapters(owner_of_body(self.seen.body), pod.name, pod.model, pod.ip, keep)
                self.told.held.pop(pod.proof_key, None)


def _read_of(ended: Mapping[str, Any]) -> Read | None:
    """What a loader that succeeded tells."""
    if ended.get("exitCode") != 0:
        return None
    try:
        return Read.model_validate(json.loads(str(ended.get("message") or "")))
    except (ValueError, ValidationError):
        return None


def _why(pod: Manifest, ended: Mapping[str, Any]) -> str:
    lines = str(ended.get("message") or "").strip().splitlines()
    status = pod.get("status") or {}
    return (lines[-1] if lines else str(status.get("message") or status.get("reason") or ended.get("reason") or "the pod failed"))[:600]
