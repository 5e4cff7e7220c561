"""Certificates of the data plane: what is in them, when they are renewed, and that only one resource's peers accept them."""

import base64
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from splitinference.adapters.peers.certificates import CertificateAuthority, Roots, RootSecret, ca_certificate, ca_key, derived
from splitinference.controller.identity import Credentials, Owner, Role
from splitinference.controller.ports import RefusedError, UnavailableError

CHAT = Owner(namespace="team", name="chat", uid="0b1c2d3e-0000-4000-8000-000000000001")
NOW = datetime(2026, 5, 4, 3, 2, 1, 999, tzinfo=UTC)
HOUR = timedelta(hours=1)


class Fixed:
    def __init__(self, *keys: bytes) -> None:
        self.keys = keys or (b"r" * 32,)

    def roots(self) -> Roots:
        return Roots(keys=tuple(self.keys))


def authority(*keys: bytes) -> CertificateAuthority:
    return CertificateAuthority(Fixed(*keys), "cluster.local")


def leaf(found: Credentials) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.certificate)


def bundle(found: Credentials) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(found.authorities)


# --- what is in them -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", list(Role))
def test_a_leaf_says_who_it_is_by_one_uri_and_nothing_else(role: Role):
    found = leaf(authority().credentials(CHAT, role, NOW))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [(type(name), name.value) for name in names] == [
        (x509.UniformResourceIdentifier, f"spiffe://cluster.local/ns/team/si/chat/{role.value}")
    ]
    assert set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert isinstance(found.public_key(), ec.EllipticCurvePublicKey)
    assert found.public_key().curve.name == "secp256r1"


def test_a_leaf_lives_a_day_and_a_node_whose_clock_is_an_hour_late_takes_it():
    found = authority().credentials(CHAT, Role.SEGMENT, NOW)
    assert found.not_after - NOW.replace(microsecond=0) == 24 * HOUR
    assert found.not_before <= NOW - HOUR


def test_a_ca_signs_leaves_only():
    (ca,) = bundle(authority().credentials(CHAT, Role.SEGMENT, NOW))
    constraints = ca.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)


def test_all_of_it_comes_from_the_root_key_so_after_a_restart_it_is_the_same_ca():
    first, second = (authority().credentials(CHAT, Role.SEGMENT, NOW) for _ in range(2))
    assert first.authorities == second.authorities
    assert first.key != second.key
    assert authority().prefix_key(CHAT) == authority().prefix_key(CHAT)


def test_resources_and_root_keys_do_not_share_keys():
    other = CHAT.model_copy(update={"uid": "0b1c2d3e-0000-4000-8000-000000000002"})
    assert len({authority().credentials(owner, Role.SEGMENT, NOW).authorities for owner in (CHAT, other)}) == 2
    assert authority().prefix_key(CHAT) != authority().prefix_key(other)
    assert authority(b"s" * 32).prefix_key(CHAT) != authority().prefix_key(CHAT)
    assert len(authority().prefix_key(CHAT)) == 32


def test_hkdf_is_that_of_the_rfc_and_a_key_is_within_the_group():
    """RFC 5869 by hand: extract with a salt of zeros, then expand."""
    import hashlib
    import hmac

    extracted = hmac.digest(bytes(32), b"r" * 32, hashlib.sha256)
    assert derived(b"r" * 32, "x", 32) == hmac.digest(extracted, b"splitinference/v1/x\x01", hashlib.sha256)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    scalars = {ca_key(bytes([number]) * 32, CHAT.uid).private_numbers().private_value for number in range(64)}
    assert len(scalars) == 64
    assert all(1 <= scalar < order for scalar in scalars)


def test_long_names_fit():
    long = Owner(namespace="n" * 63, name="a" * 40, uid="u" * 36)
    certificate = ca_certificate(ca_key(b"r" * 32, long.uid), long)
    assert certificate.subject == certificate.issuer


def test_an_independent_verifier_takes_the_chain():
    """The chain rules of another implementation than OpenSSL: that of the cryptography package, which follows the CA/Browser Forum."""
    found = authority().credentials(CHAT, Role.SEGMENT, NOW)
    verifier = PolicyBuilder().store(Store(bundle(found))).time(NOW).build_client_verifier()
    assert verifier.verify(leaf(found), []).subjects == [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/team/si/chat/segment")]


# --- renewal -------------------------------------------------------------------------------------------------------------------------


def test_it_is_the_same_until_a_third_of_its_life_is_over():
    made = authority()
    first = made.credentials(CHAT, Role.SEGMENT, NOW)
    assert made.credentials(CHAT, Role.SEGMENT, NOW + 7.9 * HOUR) is first
    renewed = made.credentials(CHAT, Role.SEGMENT, NOW + 8 * HOUR)
    assert renewed.certificate != first.certificate
    assert renewed.not_after > first.not_after
    assert made.credentials(CHAT, Role.SEGMENT, NOW + 9 * HOUR) is renewed


def test_a_clock_that_went_back_gets_a_certificate_that_is_valid_then():
    made = authority()
    made.credentials(CHAT, Role.SEGMENT, NOW)
    assert made.credentials(CHAT, Role.SEGMENT, NOW - 48 * HOUR).not_before < NOW - 48 * HOUR


def test_what_is_not_needed_any_more_is_forgotten():
    made = authority()
    first = made.credentials(CHAT, Role.SEGMENT, NOW)
    made.forget("team", "other")
    assert made.credentials(CHAT, Role.SEGMENT, NOW) is first
    made.forget("team", "chat")
    assert made.credentials(CHAT, Role.SEGMENT, NOW) is not first


# --- the root key --------------------------------------------------------------------------------------------------------------------


class Cluster:
    """Secrets of the operator's namespace. `before_create` is what another replica does in between."""

    def __init__(self) -> None:
        self.there: dict[str, dict[str, Any]] = {}
        self.fails: Exception | None = None
        self.before_create: Any = None

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        assert (kind, namespace) == ("Secret", "system")
        if self.fails:
            raise self.fails
        return self.there.get(name)

    def create(self, manifest: Any) -> None:
        if self.before_create:
            self.before_create()
        self.there.setdefault(manifest["metadata"]["name"], manifest)


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


def test_the_root_key_is_made_once_and_of_two_replicas_the_first_one_wins():
    cluster, clock = Cluster(), Clock()
    one, two = (RootSecret(cluster, "system", "root", clock) for _ in range(2))
    found: list[Roots] = []

    def other_replica() -> None:
        cluster.before_create = None
        found.append(two.roots())

    cluster.before_create = other_replica
    found.append(one.roots())
    assert found[0] == found[1]
    assert RootSecret(cluster, "system", "root", clock).roots() == found[0]
    assert len(found[0].keys[0]) == 32


def test_a_root_secret_that_was_deleted_is_made_again_with_the_same_keys():
    cluster, clock = Cluster(), Clock()
    root = RootSecret(cluster, "system", "root", clock)
    before = root.roots()
    cluster.there.clear()
    clock.time += timedelta(minutes=2)
    assert root.roots() == before
    assert RootSecret(cluster, "system", "root", clock).roots() == before


def test_while_the_api_server_is_away_the_last_root_key_is_used():
    cluster, clock = Cluster(), Clock()
    root = RootSecret(cluster, "system", "root", clock)
    before = root.roots()
    cluster.fails = UnavailableError("away")
    clock.time += timedelta(hours=2)
    assert root.roots() == before
    with pytest.raises(UnavailableError, match="away"):
        RootSecret(cluster, "system", "root", clock).roots()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ({}, "has no root.key"),
        ({"root.key": base64.b64encode(b"short").decode()}, "has 5 bytes"),
        ({"root.key": "%%%"}, "is not base64"),
        ({"root.key": base64.b64encode(b"r" * 32).decode(), "next.key": ""}, "next.key .* has 0 bytes"),
    ],
)
def test_a_root_secret_that_cannot_be_used_is_said_to_be(data: dict[str, str], why: str):
    cluster = Cluster()
    cluster.there["root"] = {"data": data}
    with pytest.raises(RefusedError, match=why):
        RootSecret(cluster, "system", "root", Clock()).roots()


# --- handshakes ----------------------------------------------------------------------------------------------------------------------


def shaken(tmp_path: Path, server: Credentials, client: Credentials) -> str:
    """Shake hands on a socket pair, both sides asking for a certificate; what went wrong, or nothing."""
    contexts = []
    for side, found in ((ssl.PROTOCOL_TLS_SERVER, server), (ssl.PROTOCOL_TLS_CLIENT, client)):
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        (tmp_path / "both.pem").write_bytes(found.certificate + found.key)
        context.load_cert_chain(tmp_path / "both.pem")
        context.load_verify_locations(cadata=found.authorities.decode())
        contexts.append(context)
    here, there = socket.socketpair()
    problems: list[str] = []

    def serve() -> None:
        try:
            with contexts[0].wrap_socket(there, server_side=True) as secured:
                secured.sendall(b"!")
        except OSError as error:
            problems.append(str(error))
            there.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with contexts[1].wrap_socket(here) as secured:
            secured.recv(1)
    except OSError as error:
        problems.append(str(error))
    finally:
        here.close()
        thread.join()
    return "; ".join(problems)


def now_made(made: CertificateAuthority, role: Role, owner: Owner = CHAT, ago: timedelta = timedelta()) -> Credentials:
    return made.credentials(owner, role, datetime.now(UTC) - ago)


def test_peers_of_one_resource_shake_hands_and_those_of_another_do_not(tmp_path: Path):
    made, other = authority(), CHAT.model_copy(update={"uid": "another"})
    server = now_made(made, Role.SEGMENT)
    assert shaken(tmp_path, server, now_made(made, Role.GATEWAY)) == ""
    assert "verify failed" in shaken(tmp_path, server, now_made(made, Role.GATEWAY, other))


@pytest.mark.parametrize("ago", [26 * HOUR, -2 * HOUR])
def test_what_is_expired_or_not_valid_yet_is_refused(tmp_path: Path, ago: timedelta):
    made = authority()
    assert "verify failed" in shaken(tmp_path, now_made(made, Role.SEGMENT), now_made(authority(), Role.GATEWAY, ago=ago))


@pytest.mark.parametrize("ago", [HOUR, -HOUR])
def test_a_clock_an_hour_off_does_no_harm(tmp_path: Path, ago: timedelta):
    assert shaken(tmp_path, now_made(authority(), Role.SEGMENT), now_made(authority(), Role.GATEWAY, ago=ago)) == ""


def test_the_root_key_is_changed_without_a_moment_in_which_peers_refuse_each_other(tmp_path: Path):
    """The documented steps. At each of them some peers have what the step before made, and others what it makes."""
    old, new = b"o" * 32, b"n" * 32
    steps = [authority(*keys) for keys in ((old,), (old, new), (new, old), (new,))]
    for before, after in pairwise(steps):
        for server, client in ((before, after), (after, before), (after, after)):
            assert shaken(tmp_path, now_made(server, Role.SEGMENT), now_made(client, Role.GATEWAY)) == ""
    assert shaken(tmp_path, now_made(steps[0], Role.SEGMENT), now_made(steps[3], Role.GATEWAY))
