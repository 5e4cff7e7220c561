"""Where the page's document comes from: objects of a cluster, live or from a file. A simulation is in `simulated`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from splitinference.controller.cluster_state.figures.node_benchmark import Records, with_figures
from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.cluster_state.node_capacity import Standing, standing_of
from splitinference.controller.cluster_state.pods import is_ours, labels_of
from splitinference.controller.cluster_state.snapshot import Picture, Reading, Sources, claims, device_claims, read_snapshot
from splitinference.controller.cluster_state.snapshot import picture_of as drawn
from splitinference.controller.manifests.gateway import GATEWAY
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.manifests.profile_pod import cache_name
from splitinference.controller.ports import Manifest
from splitinference.settings import Settings
from splitinference.ui.page.document import Document, Item
from splitinference.ui.page.figures import MOST_LINKS, hops, link_items, node_items
from splitinference.ui.page.resources import Load, resource_item
from splitinference.ui.questions.asked import Basis, UnanswerableError
from splitinference.ui.questions.basis import basis_of, parsed, profile_of
from splitinference.view import read, read_nodes


class Source(Protocol):
    """Called from one thread at a time."""

    def read(self) -> Document:
        """The newest state. Raises UnavailableError where it is not known."""

    def basis(self, key: str) -> Basis:
        """What the resource `namespace/name` is planned from now. Raises UnanswerableError, UnavailableError and RefusedError."""

    def close(self) -> None:
        """Give back what is held."""


@dataclass(frozen=True)
class Objects:
    """Objects of a cluster at one moment. `loads`: running requests by namespace and name of gateway pods."""

    now: datetime
    resources: Sequence[Manifest] = ()
    nodes: Sequence[Manifest] = ()
    pods: Sequence[Manifest] = ()
    measured: Measured = field(default_factory=Measured)
    loads: Mapping[tuple[str, str], Load] = field(default_factory=dict)
    records: Records = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def document_of(objects: Objects, settings: Settings, before: Standing | None = None) -> tuple[Document, Picture]:
    """The document, and the picture of nodes and links that it was made from. `before`: what stood there at the last look."""
    nodes = [with_figures(node, objects.records) for node in objects.nodes]
    picture = drawn(standing_of(nodes, objects.pods, settings, before), objects.measured, settings)
    by_owner = _by_owner(objects.pods)
    items: dict[str, Item] = {}
    for body in objects.resources:
        owner = (str(body["metadata"].get("namespace", "")), str(body["metadata"].get("name", "")))
        pods = by_owner.get(owner, ())
        items["/".join(owner)] = resource_item(read(body, pods), _load(pods, objects.loads), body.get("spec"))
    links, count = link_items(picture.snapshot.network, hops(items.values()))
    more = [f"The list of links has {MOST_LINKS} of {count}."] if count > len(links) else []
    document = Document(
        read=objects.now,
        nodes=node_items(read_nodes(objects.nodes, objects.pods), picture, settings),
        resources=items,
        links=links,
        notes=tuple(dict.fromkeys([*objects.notes, *more])),
    )
    return document, picture


def _by_owner(pods: Iterable[Manifest]) -> Mapping[tuple[str, str], Sequence[Manifest]]:
    found: dict[tuple[str, str], list[Manifest]] = {}
    for pod in pods:
        labels = labels_of(pod)
        if labels.get(MANAGED_BY) == OURS:
            found.setdefault((str(pod["metadata"].get("namespace", "")), str(labels.get(INSTANCE, ""))), []).append(pod)
    return found


def _load(pods: Sequence[Manifest], loads: Mapping[tuple[str, str], Load]) -> Load:
    """Of all gateways of one resource together; not known while that of one is not."""
    gateways = [pod for pod in pods if is_ours(pod, GATEWAY) and not pod["metadata"].get("deletionTimestamp")]
    seen = [loads.get((str(pod["metadata"].get("namespace", "")), str(pod["metadata"]["name"]))) for pod in gateways]
    known = [load for load in seen if load is not None]
    if not known or len(known) < len(seen):
        return Load()
    running = [load.running for load in known if load.running is not None]
    waiting = [load.waiting for load in known if load.waiting is not None]
    return Load(sum(running) if running else None, sum(waiting) if waiting else None)


def basis_from(
    objects: Objects, picture: Picture, key: str, settings: Settings, kept: Callable[[str, str], Mapping[str, Any] | None]
) -> Basis:
    """What a resource of these objects is planned from. `kept`: a ConfigMap by namespace and name."""
    namespace, _, name = key.partition("/")
    owner = (namespace, name)
    bodies = (r for r in objects.resources if (r["metadata"].get("namespace"), r["metadata"].get("name")) == owner)
    body = next(bodies, None)
    if body is None:
        raise UnanswerableError(f"There is no SplitInference {key[:200]}.")
    if not objects.nodes:
        raise UnanswerableError("The page knows no nodes to plan on. Its notes say why.")
    resource = parsed(body)
    profile = profile_of(resource, kept(namespace, cache_name(resource)), settings)
    return basis_of(resource, body, profile, _reading(objects, picture, owner, settings))


def _reading(objects: Objects, picture: Picture, owner: tuple[str, str], settings: Settings) -> Reading:
    return read_snapshot(
        Sources(
            now=objects.now,
            nodes=objects.nodes,
            pods=objects.pods,
            measured=objects.measured,
            held=claims(objects.resources, objects.pods, *owner),
            owner=owner,
            picture=picture,
            held_devices=device_claims(objects.resources, objects.pods, *owner),
        ),
        settings,
    )


@dataclass
class Recorded:
    """Objects as `kubectl get splitinferences,nodes,pods,configmaps -A -o json` writes them: one look, always the same."""

    items: Sequence[Manifest]
    settings: Settings
    now: datetime = field(default_factory=lambda: datetime.now(UTC))

    def read(self) -> Document:
        """The document of the file."""
        return document_of(self._objects(), self.settings)[0]

    def basis(self, key: str) -> Basis:
        """As the operator would plan on these nodes."""
        objects = self._objects()
        maps = {(m["metadata"].get("namespace"), m["metadata"]["name"]): m for m in self._of("ConfigMap")}
        picture = document_of(objects, self.settings)[1]
        return basis_from(objects, picture, key, self.settings, lambda namespace, name: maps.get((namespace, name)))

    def close(self) -> None:
        """Nothing is held."""

    def _objects(self) -> Objects:
        return Objects(
            now=self.now,
            resources=self._of("SplitInference"),
            nodes=self._of("Node"),
            pods=[pod for pod in self._of("Pod") if (pod.get("status") or {}).get("phase") != "Succeeded"],
            notes=("This is a recording: nothing here changes, and the use of nodes is not known.",),
        )

    def _of(self, kind: str) -> list[Manifest]:
        return [item for item in self.items if item.get("kind") == kind]
