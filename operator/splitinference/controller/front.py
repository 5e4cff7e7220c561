"""The gateway of a resource, kept as the plan in force needs it."""

import hashlib
import json
from datetime import datetime, timedelta

from splitinference.controller.gateway import gateway_name
from splitinference.controller.look import Seen, owner_of
from splitinference.controller.ports import Manifest, Ports
from splitinference.core.profile import Profile

_FIRST = timedelta(seconds=10)


def ensure_gateway(ports: Ports, body: Manifest, profile: Profile, applied: str) -> str:
    """Apply the gateway's objects if they are others than those `applied` names, or if the Deployment is gone. Returns what names them.

    Raises RefusedError.
    """
    namespace, name = owner_of(body)
    manifests = ports.builder.gateway(body, profile)
    digest = hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
    there = {found["metadata"]["name"] for found in ports.cluster.owned("Deployment", namespace, name)}
    if digest != applied or gateway_name(name) not in there:
        for manifest in manifests:
            ports.cluster.apply(manifest)
    return digest


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
