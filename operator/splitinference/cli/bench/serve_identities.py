"""Certificates for `bench serve`: an authority that lives as long as the run, and a folder for each role, as pods mount it."""

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

IDENTITY = "spiffe://cluster.local/ns/bench/si/bench"
FOLDER = "/var/run/splitinference/tls"
_DAY = timedelta(days=1)


class Identities:
    """One authority, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
        builder = self._builder(self._name, self._key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self._own = builder.sign(self._key, hashes.SHA256())

    def folder(self, role: str) -> Path:
        """tls.crt, tls.key, ca.crt, and for a gateway prefix.key; whoever runs in a container may read them."""
        made = self._folder / role
        if made.exists():
            return made
        made.mkdir(mode=0o755)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(x509.Name([]), key.public_key())
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"{IDENTITY}/{role}")]), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(authority, critical=False)
        pem = serialization.Encoding.PEM
        (made / "tls.crt").write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(pem))
        (made / "tls.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        (made / "ca.crt").write_bytes(self._own.public_bytes(pem))
        (made / "prefix.key").write_bytes(secrets.token_bytes(32))
        for file in made.iterdir():
            file.chmod(0o444)
        return made

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(self._name).public_key(key)
        return made.serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + _DAY)
