"""The gateway of a resource, kept as the plan in force needs it, on a node that may see text."""

import copy
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta

from splitinference.controller.gateway import gateway_name
from splitinference.controller.look import Seen, owner_of
from splitinference.controller.objects import labels_asked
from splitinference.controller.pods import labels_of
from splitinference.controller.ports import Manifest, NameTakenError, Ports, RefusedError
from splitinference.core.profile import Profile

_FIRST = timedelta(seconds=10)


LEFT = "splitinference.dev/left"
"""Annotation of the gateway's pods: the uids of those before them that had to leave their node. It is there to change: Kubernetes lets a
pod stay where its affinity holds no longer; a Deployment whose template changed puts a new pod elsewhere before the old one goes."""


def ensure_gateway(ports: Ports, body: Manifest, profile: Profile, applied: str, seen: Seen) -> str:
    """Apply the gateway's objects if they are others than those `applied` names, or if the Deployment is gone. Returns what names them.

    A pod on a node that lost a label which its affinity asks for makes the objects others. Raises RefusedError, or NameTakenError, after
    all objects were tried.
    """
    namespace, name = owner_of(body)
    there = {str(found["metadata"]["name"]): found for found in ports.cluster.owned("Deployment", namespace, name)}
    before = there.get(gateway_name(name))
    left = _to_leave(seen) or (_annotations(before).get(LEFT, "") if before is not None else "")
    manifests = [_having(manifest, left) for manifest in ports.builder.gateway(body, profile)]
    digest = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
    if digest != applied or before is None:
        refused: list[RefusedError] = []
        for manifest in manifests:
            try:
                ports.cluster.apply(manifest)
            except RefusedError as error:  # the others are made: what they are for should not suffer from this one
                refused.append(error)
        if refused:
            raise _all_of(refused)
    return digest


def _all_of(refused: Sequence[RefusedError]) -> RefusedError:
    """One error for several; a name that is taken is what the user has to mend, whatever else was refused."""
    taken = any(isinstance(error, NameTakenError) for error in refused)
    return (NameTakenError if taken else RefusedError)("; ".join(str(error) for error in refused))


def _to_leave(seen: Seen) -> str:
    """The gateway's pods that their node must not have any more."""
    theirs = {(pod.get("spec") or {}).get("nodeName") for pod in seen.gateways}
    labels = {name: labels_of(node) for node in seen.nodes if (name := node["metadata"]["name"]) in theirs}
    leaving = [
        str(pod["metadata"].get("uid", ""))
        for pod in seen.gateways
        if not pod["metadata"].get("deletionTimestamp")
        and (node := (pod.get("spec") or {}).get("nodeName")) in labels
        and not labels_asked(pod["spec"]).items() <= labels[node].items()
    ]
    return ",".join(sorted(leaving))


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


def is_coming(ports: Ports, body: Manifest, seen: Seen) -> bool:
    """Whether the gateway has no node yet and may soon have one: a plan made before would not know where requests enter, and would count
    on the memory that the gateway is about to take. Counted from the making of the Deployment: reading the model may have taken long."""
    if any((pod.get("spec") or {}).get("nodeName") for pod in seen.gateways):
        return False
    namespace, name = owner_of(body)
    made = [found for found in ports.cluster.owned("Deployment", namespace, name) if found["metadata"]["name"] == gateway_name(name)]
    try:
        created = datetime.fromisoformat(str(made[0]["metadata"]["creationTimestamp"]))
    except (IndexError, KeyError, ValueError):
        return False
    return seen.now - created < _FIRST
