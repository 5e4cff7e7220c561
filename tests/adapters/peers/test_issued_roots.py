"""Root keys that follow a CA certificate in a Secret, as cert-manager makes it: rotation by steps, and what cannot be used."""

import base64
import logging
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from splitinference.adapters.peers.certificates import CertificateAuthority, Roots, RootSecret
from splitinference.adapters.peers.issued_roots import CHANGED, SETTLE, IssuedRoots, rotated
from splitinference.controller.identity import Role
from splitinference.controller.ports import RefusedError, UnavailableError
from tests.adapters.peers.test_certificates import CHAT, Cluster, shaken

BEGAN = datetime.now(UTC).replace(microsecond=0)
OLD, NEW, NEWER = b"o" * 32, b"n" * 32, b"w" * 32
STEP = SETTLE + timedelta(minutes=1)


class Secrets(Cluster):
    """The operator's namespace. What is replaced must be as it was read."""

    def replace(self, manifest: Any) -> None:
        self.there[manifest["metadata"]["name"]] = manifest


class Clock:
    def __init__(self) -> None:
        self.time = BEGAN

    def now(self) -> datetime:
        return self.time


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def usage_of(*, signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only")
    return x509.KeyUsage(digital_signature=True, key_cert_sign=signs, crl_sign=signs, **dict.fromkeys(others, False))


class Company:
    """Stands for cert-manager with a CA Issuer: it makes what a Certificate with isCA asks for."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = self.key.public_key()
        begins, ends = BEGAN - timedelta(days=999), BEGAN + timedelta(days=999)
        builder = x509.CertificateBuilder(name("company"), name("company"), public, 1, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        builder = builder.add_extension(usage_of(signs=True), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        self.root = builder.sign(self.key, hashes.SHA256())

    def secret(self, key: Any = None, *, ca: bool = True, path: int | None = None, days: int = 90, usage: bool = True) -> dict[str, Any]:
        key = key or ec.generate_private_key(ec.SECP256R1())
        begins = BEGAN - timedelta(days=100)
        serial = x509.random_serial_number()
        builder = x509.CertificateBuilder(name("company"), name("release"), key.public_key(), serial, begins, BEGAN + timedelta(days=days))
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path), critical=True)
        builder = builder.add_extension(usage_of(signs=usage), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        text = builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return {
            "type": "kubernetes.io/tls",
            "data": {n: base64.b64encode(v).decode() for n, v in (("tls.crt", text), ("tls.key", private))},
        }


class World:
    def __init__(self) -> None:
        self.cluster, self.clock, self.company = Secrets(), Clock(), Company()
        self.roots = self.operator()

    def operator(self) -> IssuedRoots:
        """A new process of the operator."""
        return IssuedRoots(self.cluster, "system", "root", "issuer", self.clock)

    def issue(self, **how: Any) -> None:
        self.cluster.there["issuer"] = self.company.secret(**how)

    def later(self, time: timedelta = STEP) -> Roots:
        self.clock.time += time
        return self.roots.roots()

    def names(self) -> set[str]:
        return set(self.cluster.there["root"]["data"])


def authority(roots: Roots) -> CertificateAuthority:
    class Fixed:
        def roots(self) -> Roots:
            return roots

    return CertificateAuthority(Fixed(), "cluster.local")


def test_the_chain_of_a_leaf_leads_to_the_company_and_peers_trust_the_resource_alone(tmp_path: Path) -> None:
    world = World()
    world.issue()
    made = authority(world.roots.roots()).credentials(CHAT, Role.GATEWAY, BEGAN)
    first, *chain = x509.load_pem_x509_certificates(made.certificate)
    verifier = PolicyBuilder().store(Store([world.company.root])).time(BEGAN).build_client_verifier()
    assert [found.subject.rfc4514_string() for found in verifier.verify(first, chain).chain][-2:] == ["CN=release", "CN=company"]
    assert shaken(tmp_path, made, authority(world.roots.roots()).credentials(CHAT, Role.SEGMENT, BEGAN)) == ""
    another = CHAT.model_copy(update={"uid": "another"})
    assert "verify failed" in shaken(tmp_path, made, authority(world.roots.roots()).credentials(another, Role.SEGMENT, BEGAN))


@pytest.mark.parametrize("key", [rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()], ids=["RSA", "Ed25519"])
def test_the_issuer_may_have_another_kind_of_key(tmp_path: Path, key: Any) -> None:
    world = World()
    world.issue(key=key)
    made = authority(world.roots.roots())
    assert shaken(tmp_path, made.credentials(CHAT, Role.GATEWAY, BEGAN), made.credentials(CHAT, Role.SEGMENT, BEGAN)) == ""


def test_a_new_certificate_is_first_trusted_then_signs_and_then_the_old_key_is_forgotten(tmp_path: Path) -> None:
    world = World()
    world.issue()
    states = [world.roots.roots()]
    world.issue()  # cert-manager renews, with another key
    states += [world.later(timedelta(minutes=2)), world.later(), world.later(), world.later()]
    assert [len(state.keys) for state in states] == [1, 2, 2, 1, 1]
    assert states[1].keys == states[2].keys[::-1], "the order changes, and nothing else"
    assert states[3] == states[4]
    assert [state.issuer is not None for state in states] == [True, False, True, True, True]
    made = [authority(state) for state in states]
    for before, after in pairwise(made):
        for server, client in ((before, after), (after, before)):
            peers = server.credentials(CHAT, Role.SEGMENT, BEGAN), client.credentials(CHAT, Role.GATEWAY, BEGAN)
            assert shaken(tmp_path, *peers) == ""


def test_no_step_comes_before_pods_have_the_files_of_the_step_before() -> None:
    world = World()
    world.issue()
    first = world.roots.roots()
    world.issue()
    second = world.later(timedelta(minutes=2))
    assert len(second.keys) == 2
    assert world.later(SETTLE - timedelta(minutes=1)) == second
    world.roots = world.operator()  # another operator goes on where this one was
    assert world.later(timedelta(seconds=30)).keys == second.keys
    assert world.later(timedelta(minutes=2)).keys == second.keys[::-1]
    assert first.keys == second.keys[:1]


def test_an_operator_that_had_a_key_of_its_own_goes_over_to_the_issuer() -> None:
    world = World()
    own = RootSecret(world.cluster, "system", "root", world.clock).roots()
    world.issue()
    assert [world.later().keys[0] == own.keys[0] for _ in range(4)] == [True, False, False, False]
    assert world.names() == {"root.key"}
    assert world.later().issuer is not None


def test_a_certificate_that_is_renewed_with_the_same_key_changes_no_key() -> None:
    world, key = World(), ec.generate_private_key(ec.SECP256R1())
    world.issue(key=key)
    before = world.roots.roots()
    world.issue(key=key, days=200)
    after = world.later()
    assert after.keys == before.keys
    assert after != before, "the chain of certificates is another"


def test_a_key_that_an_administrator_added_stays_trusted() -> None:
    assert rotated({"root.key": OLD, "mine.key": NEWER}, None, NEW, BEGAN) == {"root.key": OLD, "next.key": NEW, "mine.key": NEWER}
    assert rotated({"root.key": NEW, "mine.key": NEWER}, None, NEW, BEGAN) is None


def test_a_certificate_that_changes_again_amid_a_rotation_begins_it_anew() -> None:
    assert rotated({"root.key": OLD, "next.key": NEW}, BEGAN - STEP, NEWER, BEGAN) == {"root.key": OLD, "next.key": NEWER}
    assert rotated({"root.key": NEW, "previous.key": OLD}, BEGAN - STEP, NEWER, BEGAN) == {"root.key": NEW, "next.key": NEWER}


def test_a_clock_that_was_ahead_does_not_stop_the_rotation() -> None:
    world = World()
    world.issue()
    world.roots.roots()
    world.issue()
    world.later(timedelta(minutes=2))
    world.cluster.there["root"]["metadata"]["annotations"][CHANGED] = "2099-01-01T00:00:00Z"
    assert len(world.later().keys) == 2
    assert world.cluster.there["root"]["metadata"]["annotations"][CHANGED] < "2099"


WRONG = [
    ({"data": {}}, "it has no tls.crt"),
    ({"data": {"tls.crt": "%", "tls.key": "%"}}, "tls.crt is not base64"),
    ({"data": {"tls.crt": base64.b64encode(b"x").decode(), "tls.key": "eA=="}}, "tls.crt holds no certificate"),
    (Company().secret(ca=False), "is not a CA: set isCA"),
    (Company().secret(path=0), "path length 0"),
    (Company().secret(usage=False), "no usage 'cert sign'"),
    (Company().secret(days=-1), "its certificate ended at"),
]
MIXED = {"data": {**Company().secret()["data"], "tls.key": Company().secret()["data"]["tls.key"]}}
WRONG += [(MIXED, "does not belong to the first certificate")]


@pytest.mark.parametrize(("secret", "why"), WRONG, ids=[why for _, why in WRONG])
def test_an_issuer_that_cannot_be_used_is_said_to_be_and_what_serves_stays(
    secret: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    world.cluster.there["issuer"] = secret
    with pytest.raises(UnavailableError, match=why):
        world.roots.roots()
    world.issue()
    before = world.later()
    world.cluster.there["issuer"] = secret
    with caplog.at_level(logging.WARNING):
        assert [world.later().keys, world.later().keys] == [before.keys] * 2
    assert [why in record.getMessage() for record in caplog.records] == [True], "it is said once"


def test_without_the_issuers_secret_nothing_is_made_and_the_message_says_what_to_look_at() -> None:
    world = World()
    with pytest.raises(UnavailableError, match=r"system/issuer .* does not exist: has cert-manager made it"):
        world.roots.roots()
    assert not world.cluster.there


def test_a_root_secret_that_cannot_be_used_is_not_written_over() -> None:
    world = World()
    world.issue()
    world.cluster.there["root"] = {"metadata": {"name": "root"}, "data": {"root.key": "%%%"}}
    with pytest.raises(RefusedError, match="is not base64"):
        world.roots.roots()
    assert world.cluster.there["root"]["data"] == {"root.key": "%%%"}
