"""The Secrets with the certificates of a resource: written before the pods that mount them, and again in time.

The operator cannot read Secrets. What it wrote, and when, it keeps in memory. After a restart it writes new certificates.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.controller.identity import Authority, Owner, Role, owner_of_body, secret_name
from splitinference.controller.manifests.pod_parts import metadata
from splitinference.controller.ports import Manifest, Ports

NOT_AFTER = "splitinference.dev/certificate-not-after"
"""Annotation of the Secrets: when the certificate ends. So that people can see it without reading a key."""

APPLY_EVERY = timedelta(minutes=10)
"""Secrets are written again after so long, although nothing changed.
The operator cannot read them, so it does not see one that was deleted."""
APPLY_EVERY_WHILE_WAITING = timedelta(seconds=15)
"""The same while a pod has not started yet: it may be waiting for a Secret that was deleted."""


def secrets(owner: Owner, authority: Authority, now: datetime, *, loads: bool = False) -> Sequence[Manifest]:
    """The Secrets of segments and gateway; with `loads` also that of loaders of adapters. The key with which prefixes are named goes to the
    gateway alone."""
    made = []
    roles: list[tuple[Role, dict[str, bytes]]] = [(Role.SEGMENT, {}), (Role.GATEWAY, {"prefix.key": authority.prefix_key(owner)})]
    for role, more in (*roles, *([(Role.LOADER, {})] if loads else [])):
        found = authority.credentials(owner, role, now)
        content = {"tls.crt": found.certificate, "tls.key": found.key, "ca.crt": found.authorities, **more}
        about = metadata(owner, secret_name(owner.name, role), role.value)
        about["annotations"] = {NOT_AFTER: stamp(found.not_after)}
        data = {name: base64.b64encode(value).decode() for name, value in content.items()}
        made.append({"apiVersion": "v1", "kind": "Secret", "metadata": about, "type": "Opaque", "data": data})
    return made


@dataclass(frozen=True)
class Written:
    """What was last written of a resource's Secrets, and when."""

    digest: str = ""
    at: datetime | None = None

    def due(self, digest: str, waiting: bool, now: datetime) -> bool:
        """Whether to write again. `waiting`: a pod of the resource has not started yet."""
        if self.at is None or digest != self.digest or now < self.at:
            return True
        return now - self.at >= (APPLY_EVERY_WHILE_WAITING if waiting else APPLY_EVERY)


def digest_of(manifests: Sequence[Manifest]) -> str:
    """What tells whether they changed; a key cannot be had from it."""
    return hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()


def waits(pod: Mapping[str, Any]) -> bool:
    """Whether a pod is bound to a node and has not started: among else, it may lack its Secret."""
    status = pod.get("status") or {}
    return bool((pod.get("spec") or {}).get("nodeName")) and status.get("phase") == "Pending"


def ensure_secrets(ports: Ports, body: Manifest, written: Written) -> Written:
    """Write the resource's Secrets if they changed, or if that was long ago. Raises RefusedError, UnavailableError."""
    owner, now = owner_of_body(body), ports.clock.now()
    manifests = secrets(owner, ports.authority, now, loads=bool((body.get("spec") or {}).get("adapters")))
    digest = digest_of(manifests)
    waiting = any(waits(pod) for pod in ports.cluster.owned("Pod", owner.namespace, owner.name))
    if not written.due(digest, waiting, now):
        return written
    for manifest in manifests:
        ports.cluster.apply_unread(manifest)
    return Written(digest=digest, at=now)
