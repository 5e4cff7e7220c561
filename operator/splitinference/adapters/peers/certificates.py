"""The certificate authority: from one root key come, by HKDF, a CA key for each SplitInference, and from that its certificates.

So the root key is all that has to be kept. CA certificates are made anew whenever they are needed, and are the same each time.
Leaf keys are random. They live in memory and in the Secrets that pods mount.
"""

import base64
import logging
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from splitinference.controller.identity import LIFETIME, SKEW, Credentials, Owner, Role, renewal_due, spiffe_id
from splitinference.controller.manifests.pod_parts import OURS
from splitinference.controller.ports import Clock, Manifest, RefusedError, UnavailableError

log = logging.getLogger(__name__)

ROOT_KEY = "root.key"
KEY_BYTES = 32
_SUFFIX = ".key"
_READ_EVERY = timedelta(minutes=1)
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of the group of P-256 (FIPS 186-5, SP 800-186): private keys are 1 to this less one."""
_SCALAR_BYTES = 48
"""128 bits more than the order has: what is left of a bias after the division is below 2^-128 (FIPS 186-5, A.2.1)."""
_CA_BEGINS = datetime(2020, 1, 1, tzinfo=UTC)
_CA_ENDS = datetime(2120, 1, 1, tzinfo=UTC)
"""A CA ends with its resource or with the root key, not by time; no clock is that wrong."""


class Secrets(Protocol):
    """What is needed of the API server: one Secret of the operator's own namespace."""

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object."""

    def create(self, manifest: Manifest) -> None:
        """Create it; already there is success."""


@dataclass(frozen=True)
class Issuer:
    """A CA above those of the resources. `root` is the root key that comes from its private key; `chain` begins with its certificate."""

    root: bytes = field(repr=False)
    chain: tuple[x509.Certificate, ...]
    key: CertificateIssuerPrivateKeyTypes = field(repr=False, compare=False)


@dataclass(frozen=True)
class Roots:
    """The root keys: the first signs, all are trusted. With an `issuer` the resources' CAs are certified by it, too."""

    keys: tuple[bytes, ...] = field(repr=False)
    issuer: Issuer | None = None


class RootSecret:
    """The root keys in a Secret. It is made if there is none; of two replicas that make it at once the first wins, and both use its key."""

    def __init__(self, cluster: Secrets, namespace: str, name: str, clock: Clock) -> None:
        self._cluster, self._namespace, self._name, self._clock = cluster, namespace, name, clock
        self._lock = threading.Lock()
        self._found: tuple[datetime, Roots] | None = None

    def roots(self) -> Roots:
        """The keys, at most a minute old. Raises UnavailableError or RefusedError; once they were read, the last ones are used instead."""
        with self._lock:
            now = self._clock.now()
            if self._found is not None and timedelta() <= now - self._found[0] < _READ_EVERY:
                return self._found[1]
            try:
                self._found = now, self._read()
            except (UnavailableError, RefusedError) as error:
                if self._found is None:
                    raise
                log.warning("the root key could not be read again; the last one stays in use: %s", error)
                self._found = now, self._found[1]
            return self._found[1]

    def _read(self) -> Roots:
        secret = self._cluster.get("Secret", self._namespace, self._name)
        if secret is None:
            if self._found is not None:
                log.warning("%s was deleted; it is created again with the same keys", self._where)
            secret = self._created(self._found[1].keys if self._found else (secrets.token_bytes(KEY_BYTES),))
        return self._parsed(secret.get("data") or {})

    def _created(self, keys: tuple[bytes, ...]) -> Manifest:
        """The Secret with these keys, or what another replica has made meanwhile."""
        self._cluster.create(self._made(Roots(keys=keys)))
        secret = self._cluster.get("Secret", self._namespace, self._name)
        if secret is None:
            raise UnavailableError(f"{self._where} was made and is not there")
        return secret

    def _parsed(self, data: Mapping[str, str]) -> Roots:
        found: dict[str, bytes] = {}
        for name, text in sorted(data.items()):
            if name.endswith(_SUFFIX):
                try:
                    found[name] = base64.b64decode(text, validate=True)
                except ValueError as error:
                    raise RefusedError(f"{name} of {self._where} is not base64") from error
                if len(found[name]) != KEY_BYTES:
                    raise RefusedError(f"{name} of {self._where} has {len(found[name])} bytes, a root key has {KEY_BYTES}")
        if ROOT_KEY not in found:
            raise RefusedError(f"{self._where} has no {ROOT_KEY}")
        others = dict.fromkeys(key for name, key in found.items() if name != ROOT_KEY and key != found[ROOT_KEY])
        return Roots(keys=(found[ROOT_KEY], *others))

    def _made(self, roots: Roots) -> Manifest:
        names = (ROOT_KEY, *(f"previous-{number}{_SUFFIX}" for number in range(1, len(roots.keys))))
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "labels": {"app.kubernetes.io/name": OURS, "app.kubernetes.io/component": "operator"},
            },
            "type": "Opaque",
            "data": {name: base64.b64encode(key).decode() for name, key in zip(names, roots.keys, strict=True)},
        }

    @property
    def _where(self) -> str:
        return f"the Secret {self._namespace}/{self._name} with the root key"


class Keys(Protocol):
    """Where the root keys come from."""

    def roots(self) -> Roots:
        """The keys."""


@dataclass
class CertificateAuthority:
    """Implements `Authority`. Used by many threads; what it made it keeps until renewal."""

    keys: Keys
    trust_domain: str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _made: dict[tuple[Owner, Role], tuple[Roots, Credentials]] = field(default_factory=dict)
    _bundles: dict[Owner, tuple[Roots, bytes]] = field(default_factory=dict)

    def credentials(self, owner: Owner, role: Role, now: datetime) -> Credentials:
        """Those of this role."""
        roots = self.keys.roots()
        with self._lock:
            known = self._made.get((owner, role))
            if known is not None and known[0] == roots and not renewal_due(known[1], now):
                return known[1]
            made = self._issue(roots, owner, role, now)
            self._made[owner, role] = roots, made
            return made

    def prefix_key(self, owner: Owner) -> bytes:
        """32 bytes for the resource's gateways."""
        return derived(self.keys.roots().keys[0], f"prefix/{owner.uid}", KEY_BYTES)

    def forget(self, namespace: str, name: str) -> None:
        """Drop what was made for this resource."""
        with self._lock:
            for owner in [owner for owner in self._bundles if (owner.namespace, owner.name) == (namespace, name)]:
                del self._bundles[owner]
                for role in Role:
                    self._made.pop((owner, role), None)

    def _issue(self, roots: Roots, owner: Owner, role: Role, now: datetime) -> Credentials:
        known = self._bundles.get(owner)
        if known is None or known[0] != roots:
            bundle = b"".join(_pem(ca_certificate(ca_key(root, owner.uid), owner)) for root in roots.keys)
            known = self._bundles[owner] = roots, bundle
        issuer, key = ca_key(roots.keys[0], owner.uid), ec.generate_private_key(ec.SECP256R1())
        now = now.replace(microsecond=0)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role.value)])
        request = x509.CertificateBuilder(issuer_name=_ca_name(issuer, owner), subject_name=subject, public_key=key.public_key())
        leaf = _leaf(request, issuer, spiffe_id(self.trust_domain, owner, role), now)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        chain = [leaf, *(above_ca(issuer, owner, roots.issuer, now) if roots.issuer else ())]
        return Credentials(
            certificate=b"".join(map(_pem, chain)),
            key=pem,
            authorities=known[1],
            not_before=leaf.not_valid_before_utc,
            not_after=leaf.not_valid_after_utc,
        )


def derived(root: bytes, purpose: str, length: int) -> bytes:
    """HKDF-SHA256 (RFC 5869) of the root key; `purpose` keeps keys for different things and resources apart."""
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=f"splitinference/v1/{purpose}".encode()).derive(root)


def ca_key(root: bytes, uid: str) -> ec.EllipticCurvePrivateKey:
    """The CA's P-256 key of the resource with this UID."""
    scalar = int.from_bytes(derived(root, f"ca/{uid}", _SCALAR_BYTES), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def ca_certificate(key: ec.EllipticCurvePrivateKey, owner: Owner) -> x509.Certificate:
    """The CA's certificate, the same bytes each time."""
    name, public = _ca_name(key, owner), key.public_key()
    builder = _ca(key, owner, name).not_valid_before(_CA_BEGINS).not_valid_after(_CA_ENDS).serial_number(_serial(public))
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
    return builder.sign(key, hashes.SHA256(), ecdsa_deterministic=True)


def above_ca(key: ec.EllipticCurvePrivateKey, owner: Owner, issuer: Issuer, now: datetime) -> tuple[x509.Certificate, ...]:
    """The resource's CA as certified by the issuer, and the issuer's own chain.

    Peers trust the CA's own certificate, which is the same key. So nothing else that the issuer certifies is accepted by them.
    """
    above = issuer.chain[0]
    try:
        name = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        identifier = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(name)
    except x509.ExtensionNotFound:
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    begins = max(now - SKEW, above.not_valid_before_utc)
    builder = _ca(key, owner, above.subject).not_valid_before(begins).not_valid_after(above.not_valid_after_utc)
    builder = builder.serial_number(x509.random_serial_number()).add_extension(identifier, critical=False)
    certified = builder.sign(issuer.key, None if isinstance(issuer.key, Ed25519PrivateKey) else hashes.SHA256())
    return (certified, *issuer.chain)


def _ca(key: ec.EllipticCurvePrivateKey, owner: Owner, issuer: x509.Name) -> x509.CertificateBuilder:
    """What every certificate of a resource's CA has."""
    return (
        x509.CertificateBuilder(issuer_name=issuer, subject_name=_ca_name(key, owner), public_key=key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _leaf(request: x509.CertificateBuilder, issuer: ec.EllipticCurvePrivateKey, uri: str, now: datetime) -> x509.Certificate:
    """`request` has the names and the public key."""
    builder = (
        request.serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    return builder.sign(issuer, hashes.SHA256())


def _ca_name(key: ec.EllipticCurvePrivateKey, owner: Owner) -> x509.Name:
    """Says whose CA it is. The serial number is the key's: during a rotation two CAs of one resource have different names."""
    names = [(NameOID.ORGANIZATION_NAME, OURS), (NameOID.ORGANIZATIONAL_UNIT_NAME, owner.namespace), (NameOID.COMMON_NAME, owner.name)]
    names += [(NameOID.USER_ID, owner.uid[:64]), (NameOID.SERIAL_NUMBER, f"{_serial(key.public_key()):x}"[:16])]
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in names if text])


def _serial(public: ec.EllipticCurvePublicKey) -> int:
    digest = x509.SubjectKeyIdentifier.from_public_key(public).digest
    return int.from_bytes(digest[:16], "big") >> 1 | 1


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
