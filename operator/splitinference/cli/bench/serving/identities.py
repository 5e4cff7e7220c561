"""Certificates for `bench serve`: the operator's own authority with a root key that lives as long as the run, as folders for pods."""

import secrets
from datetime import UTC, datetime
from pathlib import Path

from splitinference.adapters.peers.certificates import KEY_BYTES, CertificateAuthority
from splitinference.cli.bench.control.peers import Known
from splitinference.controller.identity import TLS_FOLDER, Owner, Role

_TRUST_DOMAIN = "cluster.local"
_OWNER = Owner(namespace="bench", name="bench", uid="bench")
IDENTITY = f"spiffe://{_TRUST_DOMAIN}/ns/{_OWNER.namespace}/si/{_OWNER.name}"
FOLDER = TLS_FOLDER


class Identities:
    """One authority, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self._folder = folder
        self._authority = CertificateAuthority(Known(secrets.token_bytes(KEY_BYTES)), _TRUST_DOMAIN)

    def folder(self, role: str) -> Path:
        """tls.crt, tls.key, ca.crt and prefix.key; whoever runs in a container may read them."""
        made = self._folder / role
        if made.exists():
            return made
        made.mkdir(mode=0o755)
        found = self._authority.credentials(_OWNER, Role(role), datetime.now(UTC))
        contents = {"tls.crt": found.certificate, "tls.key": found.key, "ca.crt": found.authorities}
        for name, content in {**contents, "prefix.key": self._authority.prefix_key(_OWNER)}.items():
            (made / name).write_bytes(content)
            (made / name).chmod(0o444)
        return made
