"""A resource's CA and leaves, as the operator issues them: P-256, one SPIFFE ID each, no DNS names."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

IDENTITY = "spiffe://cluster.local/ns/ai/si/toy"


class Authority:
    """One CA."""

    def __init__(self, name: str = "toy") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _dated(self._name, self._name, self._key.public_key(), timedelta(days=1))
        self.certificate = builder.add_extension(x509.BasicConstraints(True, 0), True).sign(self._key, hashes.SHA256())

    def write(self, folder: Path, role: str, *uris: str, age: timedelta = timedelta(0), bundle: "Authority | None" = None) -> Path:
        """tls.crt, tls.key and ca.crt of a program in `role`; `uris` instead of its ID; issued `age` ago, valid for a day."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.UniformResourceIdentifier(uri) for uri in uris or (f"{IDENTITY}/{role}",)]
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
        leaf = (
            _dated(x509.Name([]), self._name, key.public_key(), timedelta(days=1), age)
            .add_extension(x509.SubjectAlternativeName(names), True)
            .add_extension(usage, False)
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
            .sign(self._key, hashes.SHA256())
        )
        folder.mkdir(exist_ok=True)
        encoding, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        authorities = [self, *([bundle] if bundle else [])]
        contents = {
            "tls.crt": leaf.public_bytes(encoding),
            "tls.key": key.private_bytes(encoding, private, serialization.NoEncryption()),
            "ca.crt": b"".join(authority.certificate.public_bytes(encoding) for authority in authorities),
        }
        for name, content in contents.items():
            new = folder / f".{name}"
            new.write_bytes(content)
            new.rename(folder / name)
        return folder


def _dated(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: timedelta, age: timedelta = timedelta(0)
) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - age - timedelta(minutes=1)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key).serial_number(x509.random_serial_number())
    ski = x509.SubjectKeyIdentifier.from_public_key(key)
    return builder.not_valid_before(begin).not_valid_after(begin + valid).add_extension(ski, False)
