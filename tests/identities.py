"""Certificates for tests, as the operator makes them: an authority per resource, and leaves that carry one SPIFFE ID."""

import datetime
import os
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

IDENTITY = "spiffe://cluster.local/ns/team-a/si/chat"
DAY = datetime.timedelta(days=1)


@dataclass
class Authority:
    """The authority of one resource."""

    name: str = "chat"
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        made = _builder(subject, subject, self.key.public_key(), datetime.timedelta(0), 365 * DAY)
        made = made.add_extension(constraints, critical=True).add_extension(usage, critical=True)
        made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        self.certificate = made.sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        """The authority's certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def write(
        self,
        folder: Path,
        role: str,
        *,
        identity: str = IDENTITY,
        begins: datetime.timedelta = datetime.timedelta(minutes=-5),
        lasts: datetime.timedelta = DAY,
        names: list[x509.GeneralName] | None = None,
        trusts: "list[Authority] | None" = None,
    ) -> Path:
        """Write tls.crt, tls.key and ca.crt into `folder`, replacing what is there; the folder. Times are from now."""
        folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        given = names if names is not None else [x509.UniformResourceIdentifier(f"{identity}/{role}")]
        made = _builder(x509.Name([]), self.certificate.subject, key.public_key(), begins, lasts)
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        if given:
            made = made.add_extension(x509.SubjectAlternativeName(given), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        made = made.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        contents = {
            "tls.crt": made.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM),
            "tls.key": secret,
            "ca.crt": b"".join(authority.pem for authority in trusts or [self]),
        }
        for name, content in contents.items():
            new = folder / f".{name}.new"
            new.write_bytes(content)
            os.replace(new, folder / name)
        return folder


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begins: datetime.timedelta, lasts: datetime.timedelta
) -> x509.CertificateBuilder:
    begin = datetime.datetime.now(datetime.UTC) + begins
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return made.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(begin + lasts)


def self_signed(address: str, name: str) -> tuple[bytes, bytes]:
    """A certificate for an IP address that is its own CA, and its key, both as PEM."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=12))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return made.public_bytes(serialization.Encoding.PEM), secret
