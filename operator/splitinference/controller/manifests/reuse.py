"""What reuse adds to the gateway's pod: settings, memory, and the server's Secret."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from splitinference.controller.api.spec import Resource
from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.manifests.pod_parts import ObjectBody

_FOLDER = "/reuse"
_MIB = 2**20


@dataclass(frozen=True)
class ReuseParts:
    """For the gateway's container and pod; all empty where reuse is off. `memory_mib` comes on top of the container's own."""

    variables: dict[str, str] = field(default_factory=dict)
    volumes: Sequence[ObjectBody] = ()
    mounts: Sequence[ObjectBody] = ()
    memory_mib: int = 0

    def memory(self, own: str) -> str:
        """The container's memory, as a quantity."""
        bytes_ = quantity(own)
        return own if not self.memory_mib or bytes_ is None else f"{math.ceil(bytes_ / _MIB) + self.memory_mib}Mi"


def reuse_parts(resource: Resource, commit: str = "") -> ReuseParts:
    """Of `spec.reuse`. `commit`: of the model on its hub."""
    reuse = resource.spec.reuse
    if reuse is None:
        return ReuseParts()
    variables = {
        "SI_REUSE": reuse.scope.lower(),
        "SI_REUSE_SECONDS": f"{reuse.ttl.total_seconds():g}",
        "SI_REUSE_BYTES": str(reuse.memory_mib * _MIB),
        "SI_REUSE_IDENTITY": shaping_digest(resource, commit),
        "SI_REUSE_BY_CUTS": str(resource.spec.segments.link_encoding != "Plain").lower(),
    }
    if reuse.server is None:
        return ReuseParts(variables, memory_mib=reuse.memory_mib)
    variables["SI_REUSE_SERVER"] = reuse.server.url
    if reuse.server.secret_ref is None:
        return ReuseParts(variables, memory_mib=reuse.memory_mib)
    variables["SI_REUSE_SERVER_FOLDER"] = _FOLDER
    name = reuse.server.secret_ref.name
    # Only keys that are meant for this: whoever may write a resource names the server, and must not have other passwords sent there.
    sources = [
        {"secret": {"name": name, "items": [{"key": f"reuse-{key}", "path": key}], **({} if key == "password" else {"optional": True})}}
        for key in ("password", "username", "ca.crt")
    ]
    volume = {"name": "reuse", "projected": {"sources": sources}}
    return ReuseParts(variables, [volume], [{"name": "reuse", "mountPath": _FOLDER, "readOnly": True}], reuse.memory_mib)


def shaping_digest(resource: Resource, commit: str) -> str:
    """Of all in the resource that shapes answers: another digest, other answers. Adapters come and go; their digests are part of the names
    of their answers."""
    told = resource.spec.model_dump(mode="json", include={"model": True, "segments": {"link_encoding", "weights"}})
    return hashlib.sha256(json.dumps([told, commit], sort_keys=True).encode()).hexdigest()
