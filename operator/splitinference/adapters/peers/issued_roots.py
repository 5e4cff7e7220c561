"""Root keys that follow a CA certificate which somebody else renews: cert-manager, as a rule. It is in a Secret of type kubernetes.io/tls.

The operator's root Secret stays. It holds the keys that sign and are trusted now, so all replicas and the next operator agree on them.
A new certificate has a new key. From it comes a new root key, which is first trusted, then signs; then the old one is forgotten.
Each step waits until all pods have the files of the step before. See docs/concepts/security.md.
"""

import base64
import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

from splitinference.adapters.peers.certificates import KEY_BYTES, ROOT_KEY, Issuer, Roots, RootSecret, Secrets, derived
from splitinference.controller.api.conditions import stamp
from splitinference.controller.kube_values.start_failures import time_of
from splitinference.controller.ports import Clock, Manifest, UnavailableError

log = logging.getLogger(__name__)

SETTLE = timedelta(minutes=15)
"""From one step of a rotation to the next: the operator reads, writes, the kubelet updates the volume, the program notices."""
CHANGED = "splitinference.dev/root-keys-changed"
"""Annotation of the root Secret: when its keys were changed last."""
NEXT, PREVIOUS = "next.key", "previous.key"


class Store(Secrets, Protocol):
    """What is needed of the API server: two Secrets of the operator's own namespace."""

    def replace(self, manifest: Manifest) -> None:
        """Write an object that was read, if it is still as it was read. Raises UnavailableError if it is not."""


class IssuedRoots(RootSecret):
    """Implements `Keys`. Where the issuer's Secret cannot be used, the log says why once, and the root keys stay as they are."""

    def __init__(self, store: Store, namespace: str, name: str, issuer_secret: str, clock: Clock) -> None:
        """`name` is the root Secret, `issuer_secret` the one with the CA certificate, both in `namespace`."""
        super().__init__(store, namespace, name, clock)
        self._store, self._issuer_secret, self._said = store, issuer_secret, ""

    def _read(self) -> Roots:
        issuer, problem = self._issuer()
        secret = self._cluster.get("Secret", self._namespace, self._name)
        if secret is None and issuer is None and self._found is None:
            raise UnavailableError(problem)
        if problem and problem != self._said:
            log.warning("%s; the root keys stay as they are", problem)
        self._said = problem
        if secret is None:
            secret = self._created(self._found[1].keys if self._found else (issuer.root,) if issuer else ())
        if issuer is None:
            return self._parsed(secret.get("data") or {})
        secret = self._rotated(secret, issuer.root)
        roots = self._parsed(secret["data"])
        return Roots(keys=roots.keys, issuer=issuer if roots.keys[0] == issuer.root else None)

    def _rotated(self, secret: Manifest, wanted: bytes) -> Manifest:
        """The Secret, one step further if it is time."""
        data, now = dict(secret.get("data") or {}), self._clock.now()
        self._parsed(data)
        about = dict(secret.get("metadata") or {})
        changed = time_of((about.get("annotations") or {}).get(CHANGED))
        if changed is not None and not timedelta() <= now - changed:
            changed = None  # a clock that went back must not stop rotations for ever
        keys = rotated({name: base64.b64decode(text) for name, text in data.items()}, changed, wanted, now)
        if keys is None:
            return secret
        about["annotations"] = {**(about.get("annotations") or {}), CHANGED: stamp(now)}
        data = {name: base64.b64encode(key).decode() for name, key in keys.items()}
        written = {**secret, "apiVersion": "v1", "kind": "Secret", "metadata": about, "data": data}
        self._store.replace(written)
        log.info("%s follows the certificate in %s: it has %s now", self._where, self._issuer_secret, ", ".join(sorted(data)))
        return written

    def _issuer(self) -> tuple[Issuer | None, str]:
        """The certificate and its key, or why they cannot be used."""
        where = f"the Secret {self._namespace}/{self._issuer_secret} with the issuer's certificate"
        secret = self._cluster.get("Secret", self._namespace, self._issuer_secret)
        if secret is None:
            return None, f"{where} does not exist: has cert-manager made it?"
        try:
            return parsed_issuer(secret.get("data") or {}, self._clock.now()), ""
        except ValueError as error:
            return None, f"{where} cannot be used: {error}"


def rotated(keys: Mapping[str, bytes], changed: datetime | None, wanted: bytes, now: datetime) -> Mapping[str, bytes] | None:
    """The keys of the next step on the way to `wanted` as the one that signs; None where nothing is to be done now.

    A step that was made less than `SETTLE` ago is not followed by another one, as pods may still have the files of before.
    """
    if changed is not None and now - changed < SETTLE:
        return None
    others = {name: key for name, key in keys.items() if name not in (ROOT_KEY, NEXT, PREVIOUS)}
    if keys[ROOT_KEY] == wanted:
        settled = {**others, ROOT_KEY: wanted}
        return settled if dict(keys) != settled else None
    if keys.get(NEXT) == wanted:
        return {**others, ROOT_KEY: wanted, PREVIOUS: keys[ROOT_KEY]}
    return {**others, ROOT_KEY: keys[ROOT_KEY], NEXT: wanted}


def parsed_issuer(data: Mapping[str, str], now: datetime) -> Issuer:
    """The CA in a Secret of type kubernetes.io/tls. Raises ValueError in words."""
    content: dict[str, bytes] = {}
    for name in ("tls.crt", "tls.key"):
        if not data.get(name):
            raise ValueError(f"it has no {name}")
        try:
            content[name] = base64.b64decode(data[name], validate=True)
        except ValueError as error:
            raise ValueError(f"{name} is not base64") from error
    try:
        chain = x509.load_pem_x509_certificates(content["tls.crt"])
    except ValueError as error:
        raise ValueError("tls.crt holds no certificate") from error
    try:
        key = serialization.load_pem_private_key(content["tls.key"], None)
    except (ValueError, TypeError) as error:
        raise ValueError("tls.key holds no private key without a password") from error
    if not isinstance(key, (ec.EllipticCurvePrivateKey, rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        raise ValueError("tls.key is neither an ECDSA, an RSA nor an Ed25519 key")
    certificate = chain[0]
    if _public(key.public_key()) != _public(certificate.public_key()):
        raise ValueError("tls.key does not belong to the first certificate of tls.crt")
    _may_sign(certificate, now)
    return Issuer(root=_root_of(key), chain=tuple(chain), key=key)


def _may_sign(certificate: x509.Certificate, now: datetime) -> None:
    """Raises ValueError where it may not sign the CA of a resource now."""
    extensions = certificate.extensions
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
    if not constraints.ca:
        raise ValueError("its certificate is not a CA: set isCA in the Certificate")
    if constraints.path_length == 0:
        raise ValueError("its certificate may sign no other CA (path length 0), and each resource has one")
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        usage = None
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its certificate has no usage 'cert sign'")
    if now >= certificate.not_valid_after_utc:
        raise ValueError(f"its certificate ended at {stamp(certificate.not_valid_after_utc)}")


def _public(key: object) -> bytes:
    found: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]
    return found


def _root_of(key: CertificateIssuerPrivateKeyTypes) -> bytes:
    """The root key that belongs to this private key: who does not have the one cannot know the other."""
    private = key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return derived(private, "issuer", KEY_BYTES)
