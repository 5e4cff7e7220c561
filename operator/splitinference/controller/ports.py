"""What one pass needs of the world outside, as Protocols: adapters implement them, tests fake them.

Objects of the cluster are plain Kubernetes JSON (`Manifest`, camelCase, as the API server sends it). Three rules hold for every port:

- **Expected outcomes are values** (`Unreadable`, `Samples.problem`, `None`). Exceptions are for what a pass cannot work with:
  `UnavailableError` (the pass ends, nothing is changed, it is tried again) and `RefusedError` (the API server said no to this object; it
  becomes a condition).
- **Every call returns within its own time limit** (a few seconds); a pass never waits for something to happen.
- **Every write may run twice**: applying what is there and deleting what is gone are success.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, Self

from pydantic import Field

from splitinference.controller.api.adapter_spec import AdapterSpec
from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import Authority, Owner
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import Profile
from splitinference.core.values.value import Value
from splitinference_protocol.report import GatewayReport
from splitinference_protocol.wire.request import Hop

Manifest = Mapping[str, Any]
Generation = tuple[int, ...]


class Listing(tuple[Manifest, ...]):
    """Objects of one kind as they were at one moment. `generation` is another for each other content of the same store, so what was worked
    out from a listing holds while its generation stays. Numbers of two stores say nothing of each other."""

    generation: Generation
    _named: "Mapping[str, Manifest] | None" = None

    def __new__(cls, items: Iterable[Manifest], generation: Generation) -> Self:
        """These objects, as the store had them at this generation."""
        made = super().__new__(cls, items)
        made.generation = generation
        return made

    @property
    def named(self) -> Mapping[str, Manifest]:
        """Objects of the cluster, such as nodes, by name: worked out once for all passes that share the listing."""
        if self._named is None:
            self._named = {str(found["metadata"]["name"]): found for found in self}
        return self._named


class UnavailableError(Exception):
    """The API server cannot be reached, or answers with an error that may pass (429, 5xx, timeout)."""


class RefusedError(Exception):
    """The API server will not take this object (400, 403, 422, quota). The text is what it said."""


class NameTakenError(RefusedError):
    """Another object has the name, and its controller is not the SplitInference that needs it. Nothing of it was changed."""


# --- the cluster ---------------------------------------------------------------------------------------------------------------------


class Cluster(Protocol):
    """The Kubernetes API. Reads may come from a watch cache, with one condition: a caller sees its own writes (`split_inferences` above
    all, since capacity held by other resources' plans is read from their status)."""

    def split_inferences(self) -> Listing:
        """All SplitInference objects of all namespaces, with spec (defaults filled in) and status."""

    def nodes(self) -> Listing:
        """All nodes."""

    def pods(self) -> Listing:
        """All pods of all namespaces that are not Succeeded; Failed ones included."""

    def owned(self, kind: str, namespace: str, instance: str) -> Sequence[Manifest]:
        """Objects of `kind` (`Pod`, `Service`, `Role` …) with our labels for this instance
        (`app.kubernetes.io/managed-by=splitinference`, `app.kubernetes.io/instance=<instance>`) whose controller is a SplitInference of
        that name. Objects that merely carry the labels are not among them."""

    def pod_warning(self, namespace: str, uid: str) -> str:
        """The newest Warning event about the pod with this uid, as `reason: message`; empty where there is none, or none may be read."""

    def apply(self, manifest: Manifest) -> None:
        """Create the object, or make the one that is there be as this says (server-side apply with our field manager, forced). For all but
        segment pods. Raises NameTakenError where an object of another owner has the name; that one is not changed."""

    def apply_unread(self, manifest: Manifest) -> None:
        """The same for a Secret, whose content the operator neither reads nor gets back. RefusedError if it exists with another owner."""

    def create(self, manifest: Manifest) -> None:
        """Create the object (segment pods: their names come from their content). Already there is success if it has the same owner, or an
        earlier SplitInference of the same name; else it raises NameTakenError."""

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete the object in the background, with its own grace period, if a SplitInference is its controller. Not found is success, and
        what has another owner is left alone."""

    def patch_status(self, namespace: str, name: str, status: Mapping[str, Any], version: str = "") -> str:
        """Merge-patch the status subresource of a SplitInference. `None` as a value removes the field; lists are replaced whole.
        `version` is the resourceVersion that the caller read: UnavailableError where the resource was written since. Returns the new one.
        Not found is success (the resource was deleted meanwhile) and returns `version`."""

    def event(self, about: Manifest, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Write an Event about `about` (a SplitInference). Failing to is not an error: the adapter logs it."""


# --- metrics -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """One value and its age. The age is taken on the metrics server's own clock (time of evaluation minus time of the sample), so a
    clock that differs from the operator's does no harm. A NaN is handed over as value None. `labels`: those of its series that tell whom it
    is about and who says so; none where the sample's name is already that of the node, pod or link."""

    value: float | None
    age_seconds: float
    labels: Mapping[str, str] = field(default_factory=dict)


class Unusable(Value):
    """A series that is not used. `labels` tell whom it is about and who says so, `why` the reason, in words."""

    labels: Mapping[str, str]
    why: str


class Samples(Value):
    """One query's answer by name. `problem` says why there is no answer at all, and `reason` so in one word, for a condition; `notes` what
    was odd in it (several series for one name: the name is then left out); `unusable` what was odd in series that have labels: whether that
    matters depends on whom they are about."""

    by_name: Mapping[str, Sample] = Field(default_factory=dict)
    unusable: tuple[Unusable, ...] = ()
    problem: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


class Metrics(Protocol):
    """Queries to Prometheus. Never raises: what cannot be read is `Samples(problem=…)`, in words, with the server's address.

    Names of samples are those of nodes, pods and links where samples have no labels; else `controller.believed` finds out whom they are
    about.
    """

    def node_cpu_cores(self) -> Samples:
        """Cores in use on each node, by everybody, by node name."""

    def segment_cpu_cores(self) -> Samples:
        """Cores in use by each of our segment pods, by `namespace/pod`."""

    def node_memory_available_bytes(self) -> Samples:
        """Memory still available on each node, by node name. A setting may leave this query empty: then no name and no problem."""

    def links_mbps(self) -> Samples:
        """Measured bandwidth in Mbit/s by `source/target` node names, one sample for each who measured; empty while nothing is measured."""

    def links_rtt_ms(self) -> Samples:
        """Measured round trip in ms, the same way."""

    def node_gpu_used(self) -> Samples:
        """Share 0..1 of the GPU time that is used on each node that has GPUs, by everybody, by node name."""

    def node_gpu_used_by_others(self) -> Samples:
        """The same, without the GPUs that Kubernetes gave to our segments."""

    def node_watts(self) -> Samples:
        """Watts that the processors of each node take now, by node name; empty where nothing exports it."""

    def node_cpu_waiting(self) -> Samples:
        """Share 0..1 of the time in which some task of the node waited for a processor (pressure stall information), by node name; empty
        where kernels or exporters do not have it."""

    def node_cpu_limited(self) -> Samples:
        """Share 0..1 of the time in which some container of the node was held back by its own CPU limit, by node name; no name for a node
        whose containers have none."""

    def segment_cpu_waiting(self) -> Samples:
        """The same of each of our segment pods, by `namespace/pod`."""

    def segment_cpu_throttled(self) -> Samples:
        """Share 0..1 of the scheduler's periods in which a segment pod was held back by a CPU limit, by `namespace/pod`."""


# --- the data plane ------------------------------------------------------------------------------------------------------------------


class Gateways(Protocol):
    """The gateways' own account of their routes."""

    def routes(self, owner: Owner) -> GatewayReport | None:
        """Ask the gateway of this resource. None when it cannot be reached, cannot prove who it is, or answers with an error or with
        something else."""


class Proof(Value):
    """The result of a real tiny inference (`op: probe`) through one segment."""

    ok: bool
    milliseconds: float | None = None
    why: str = Field(default="", description="when not ok: in words, with the error code")
    dead: bool = Field(
        default=False, description="it answered with an error, or refused the connection: broken, and not merely slow (no answer in time)"
    )
    unreachable: bool = Field(default=False, description="no connection could be made: its node, or the way there, is gone")


class Segments(Protocol):
    """Segments, spoken to directly (the wire on their pod's address)."""

    def prove(self, owner: Owner, segment: str, model: str, pod_ip: str) -> Proof:
        """Run one token through this segment's own layers. Not ok on any error or after the adapter's time limit (about 2 s)."""

    def adapters(
        self, owner: Owner, segment: str, model: str, pod_ip: str, keep: Collection[str] | None = None
    ) -> Mapping[str, int] | None:
        """Bytes of each adapter that this segment holds, by digest. `keep`: it drops all others. None when it does not say."""


# --- the model -----------------------------------------------------------------------------------------------------------------------


class Unreadable(Value):
    """The model cannot be read. `reason` is CamelCase for a condition, `message` names the path or repository and what to do."""

    reason: str = "ModelUnreadable"
    message: str


class Pending(Value):
    """The profile is being made (a pod reads the model's configuration); look again."""

    message: str


class Models(Protocol):
    """Profiles of models, cached by what names the model's content."""

    def profile(self, resource: Resource) -> Profile | Pending | Unreadable:
        """The profile of `resource.spec.model`; never blocks for long: `Pending` while it is being made."""


# --- what the pass builds and asks ---------------------------------------------------------------------------------------------------


class SegmentObjects(Value):
    """One segment as objects of the cluster. `name` covers all that makes the content, so equal names are equal segments."""

    name: str
    model: str = Field(description="the Triton model's name, for the route")
    memory_bytes: int = Field(ge=0, description="the pod's memory request: what the node must have free")
    pod: Mapping[str, Any]
    service: Mapping[str, Any]


class Builder(Protocol):
    """Manifests (controller/manifests/segment.py implements this; pure)."""

    def segment(self, resource: Resource, profile: Profile, segment: Segment, memory_bytes: int, kv_bytes: int) -> SegmentObjects:
        """Pod and Service of one segment. `memory_bytes` is the plan's demand (weights, KV, runtime, margin): request and limit, or what is
        taken of its device's memory where it is on one."""

    def verifier(self, resource: Resource, profile: Profile, segment: Segment, memory_bytes: int, kv_bytes: int) -> SegmentObjects:
        """Pod and Service of a verifier: the same as a segment, but no part of any route."""

    def prefetch(self, resource: Resource, profile: Profile, segment: Segment) -> Manifest | None:
        """A pod that brings the segment's files into its node's cache and ends; None where there is nothing to be brought."""

    def adapter_loader(
        self,
        resource: Resource,
        adapter: AdapterSpec,
        source: str,
        *,
        targets: Sequence[Hop],
        nodes: Collection[str],
        blocks: int,
        again: int,
    ) -> Manifest:
        """A pod that gives an adapter to these segments and ends. `nodes`: where a folder of nodes may be read; `again`: tries before."""

    def gateway(self, resource: Resource, profile: Profile) -> Sequence[Manifest]:
        """ServiceAccount, Role, RoleBinding, Deployment, Service of the gateway; applied at every change."""

    def route(self, resource: Resource, data: Mapping[str, str]) -> Manifest:
        """The ConfigMap `<si>-route` with this `data`: `route.json` for the gateway, `history.json` for the operator."""

    def endpoint(self, resource: Resource) -> str:
        """URL of the OpenAI API inside the cluster, for status: `http://<si>-gateway.<namespace>.svc/v1`."""


class Clock(Protocol):
    """Time. Aware, UTC."""

    def now(self) -> datetime:
        """Now."""


class Benchmarks(Protocol):
    """What was measured of nodes."""

    def shown(self, nodes: Listing) -> Listing:
        """The nodes with what was measured of them; another generation where either changed."""

    def pending(self, nodes: Sequence[Manifest]) -> tuple[str, ...]:
        """Names of nodes that are about to be measured and of which nothing else is known."""


@dataclass(frozen=True)
class Ports:
    """All of them together: what `reconcile` is given.

    `planning` is held while a pass reads other resources' plans, decides, and writes its own plan to status, so that two resources never
    plan the same memory twice (`threading.Lock()` where passes run in threads of one process).
    """

    cluster: Cluster
    metrics: Metrics
    gateways: Gateways
    segments: Segments
    models: Models
    builder: Builder
    authority: Authority
    clock: Clock
    planning: AbstractContextManager[Any]
    benchmarks: Benchmarks | None = None
