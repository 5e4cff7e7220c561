"""The gateway of a resource, kept as the plan in force needs it, on a node that may see text."""

import copy
import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.pods import labels_of
from splitinference.controller.manifests.gateway import gateway_name
from splitinference.controller.manifests.pod_parts import labels_asked
from splitinference.controller.ports import Manifest, Ports
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.upkeep.object_keeper import Keeper, tried_all
from splitinference.core.values.profile import Profile

_FIRST = timedelta(seconds=10)


LEFT = "splitinference.dev/left"
"""Annotation of the gateway's pods: the uids of those before them that had to leave their node. It is there to change: Kubernetes lets a
pod stay where its affinity holds no longer; a Deployment whose template changed puts a new pod elsewhere before the old one goes."""


@dataclass
class Front:
    """What is remembered of one resource's gateway between passes: what names its objects as they were applied, and their keeper."""

    applied: str = ""
    keeper: Keeper = field(default_factory=Keeper)


def ensure_gateway(ports: Ports, resource: Resource, profile: Profile, front: Front, seen: Seen) -> tuple[str, ...]:
    """Apply the gateway's objects if they are others than those that were applied; put right what others deleted or changed, and say so.

    A pod on a node that lost a label which its affinity asks for, or that is about to leave, makes the objects others. Raises RefusedError,
    or NameTakenError, after all objects were tried.
    """
    namespace, name = resource.namespace, resource.name
    there = {str(found["metadata"]["name"]): found for found in ports.cluster.owned("Deployment", namespace, name)}
    before = there.get(gateway_name(name))
    left = _to_leave(seen) or (_annotations(before).get(LEFT, "") if before is not None else "")
    manifests = [_having(manifest, left) for manifest in ports.builder.gateway(resource, profile)]
    digest = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
    if front.applied == digest:
        return front.keeper.keep(ports.cluster, manifests)
    done = front.keeper.keep(ports.cluster, manifests, only_missing=True) if before is not None else ()
    tried_all([partial(ports.cluster.apply, manifest) for manifest in manifests])
    front.applied = digest
    return done


def restore_gateway(ports: Ports, resource: Resource, profile: Profile, front: Front) -> tuple[str, ...]:
    """Make again what others deleted, while a transition is under way and nothing else of the gateway may change. Raises RefusedError."""
    manifests = [manifest for manifest in ports.builder.gateway(resource, profile) if manifest["kind"] != "Deployment"]
    return front.keeper.keep(ports.cluster, manifests, only_missing=True)


def _to_leave(seen: Seen) -> str:
    """The gateway's pods that their node must not have any more."""
    theirs = {(pod.get("spec") or {}).get("nodeName") for pod in seen.gateways}
    nodes = {name: node for node in seen.nodes if (name := node["metadata"]["name"]) in theirs}
    leaving = [
        str(pod["metadata"].get("uid", ""))
        for pod in seen.gateways
        if not pod["metadata"].get("deletionTimestamp")
        and (node := nodes.get((pod.get("spec") or {}).get("nodeName"))) is not None
        and (
            not labels_asked(pod["spec"]).items() <= labels_of(node).items()
            or (node["metadata"]["name"] in seen.leaving and not _tolerates_all(pod["spec"]))
        )
    ]
    return ",".join(sorted(leaving))


def _tolerates_all(spec: Manifest) -> bool:
    """Such a pod may be put on the very node that leaves, again and again."""
    return any(t.get("operator") == "Exists" and not t.get("key") for t in spec.get("tolerations") or [])


def _annotations(deployment: Manifest) -> Manifest:
    found: Manifest = deployment["spec"]["template"]["metadata"].get("annotations") or {}
    return found


def _having(manifest: Manifest, left: str) -> Manifest:
    """The Deployment with that annotation; any other object, and without one, as it is."""
    if manifest["kind"] != "Deployment" or not left:
        return manifest
    made = copy.deepcopy(dict(manifest))
    made["spec"]["template"]["metadata"]["annotations"] = {**_annotations(manifest), LEFT: left}
    return made


def is_coming(ports: Ports, resource: Resource, seen: Seen) -> bool:
    """Whether the gateway has no node yet and may soon have one: a plan made before would not know where requests enter, and would count
    on the memory that the gateway is about to take. Counted from the making of the Deployment: reading the model may have taken long."""
    if any((pod.get("spec") or {}).get("nodeName") for pod in seen.gateways):
        return False
    namespace, name = resource.namespace, resource.name
    made = [found for found in ports.cluster.owned("Deployment", namespace, name) if found["metadata"]["name"] == gateway_name(name)]
    try:
        created = datetime.fromisoformat(str(made[0]["metadata"]["creationTimestamp"]))
    except (IndexError, KeyError, ValueError):
        return False
    return seen.now - created < _FIRST
