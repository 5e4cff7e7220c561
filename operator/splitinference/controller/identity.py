"""Who is who in the data plane: a SPIFFE ID for each role of each resource, and when a certificate is renewed.

A peer is known by the URI in its certificate, never by a label or an address. How certificates are made is the adapter's matter.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from splitinference.core.values.value import Value
from splitinference_protocol.wire.operations import GATEWAY, LOADER, OPERATOR, SEGMENT

TLS_FOLDER = "/var/run/splitinference/tls"

LIFETIME = timedelta(hours=24)
SKEW = timedelta(hours=1, minutes=5)
"""A certificate is valid from so long before it is made: a node whose clock is an hour late takes it.
The five minutes are for the way to the node."""


class Role(StrEnum):
    """What a program is for its resource."""

    GATEWAY = GATEWAY
    SEGMENT = SEGMENT
    OPERATOR = OPERATOR
    LOADER = LOADER


class Owner(Value):
    """A SplitInference, as far as identities go. The UID keeps one that was deleted apart from a new one of the same name."""

    namespace: str
    name: str
    uid: str


class Credentials(Value):
    """PEM texts: a leaf certificate, its private key, and the certificates of all authorities that are trusted."""

    certificate: bytes
    key: bytes
    authorities: bytes
    not_before: datetime
    not_after: datetime


class Authority(Protocol):
    """Makes certificates. Raises UnavailableError while the root key cannot be had, RefusedError where it cannot be used."""

    def credentials(self, owner: Owner, role: Role, now: datetime) -> Credentials:
        """Those of this role: the same ones until a third of their life is over, or the authorities changed."""

    def prefix_key(self, owner: Owner) -> bytes:
        """32 bytes that only the resource's gateways get: they name prefix blocks by it."""

    def forget(self, namespace: str, name: str) -> None:
        """The resource is gone."""


def owner_of_body(body: Mapping[str, Any]) -> Owner:
    """The resource's names."""
    about = body["metadata"]
    return Owner(namespace=str(about.get("namespace", "")), name=str(about["name"]), uid=str(about.get("uid", "")))


def identity(trust_domain: str, namespace: str, name: str) -> str:
    """What the SPIFFE IDs of one resource begin with."""
    return f"spiffe://{trust_domain}/ns/{namespace}/si/{name}"


def spiffe_id(trust_domain: str, owner: Owner, role: Role) -> str:
    """The URI in the certificate of this role."""
    return f"{identity(trust_domain, owner.namespace, owner.name)}/{role.value}"


def renewal_due(credentials: Credentials, now: datetime) -> bool:
    """Whether a third of the lifetime is over, or the clock went back before the beginning."""
    issued = credentials.not_before + SKEW
    return now >= issued + (credentials.not_after - issued) / 3 or now < credentials.not_before


def secret_name(instance: str, role: Role) -> str:
    """Name of the Secret that pods of this role mount."""
    return f"{instance}-{role.value}-tls"


def tls_environment(trust_domain: str, namespace: str, name: str) -> dict[str, str]:
    """What programs are told of their identity. Certificates are not in it: their renewal changes no pod."""
    return {"SI_TLS_FOLDER": TLS_FOLDER, "SI_IDENTITY": identity(trust_domain, namespace, name)}


def tls_volume(instance: str, role: Role) -> dict[str, Any]:
    """The Secret as a volume. 0444: only the containers of the pod that mount it see it.
    0440 needs an fsGroup, for which the kubelet would change the owner of every file of a model on a claim."""
    return {"name": "tls", "secret": {"secretName": secret_name(instance, role), "defaultMode": 0o444}}


TLS_MOUNT: dict[str, Any] = {"name": "tls", "mountPath": TLS_FOLDER, "readOnly": True}
