"""Who may speak on the wire: parts of the same resource with a certificate of its authority that is valid now, each what its role may."""

import datetime
import json
import os
import queue
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from splitinference_segment.peers.identity import Identity, IdentityError
from splitinference_segment.peers.wire import WireError
from splitinference_segment.peers.wire_client import Wire
from tests.identities import IDENTITY, Authority
from tests.wire.peers import GREETING, LONG_S, MODEL, Resource, asked, ended, serving, until

HOUR = datetime.timedelta(hours=1)
URI = x509.UniformResourceIdentifier
OTHERS = {
    "another authority's certificate": {"authority": Authority()},
    "another resource's name": {"identity": "spiffe://cluster.local/ns/team-a/si/other"},
    "another namespace's": {"identity": "spiffe://cluster.local/ns/team-b/si/chat"},
    "another trust domain's": {"identity": "spiffe://evil.local/ns/team-a/si/chat"},
    "a name that begins alike": {"identity": IDENTITY + "/gateway"},
    "a role that does not exist": {"role": "admin"},
    "no name": {"names": []},
    "two names": {"names": [URI(f"{IDENTITY}/gateway"), URI(f"{IDENTITY}/segment")]},
    "a DNS name": {"names": [x509.DNSName("chat-gateway")]},
    "a DNS name that looks like it": {"names": [x509.DNSName(f"{IDENTITY}/gateway")]},
    "one that has expired": {"begins": -3 * HOUR, "lasts": HOUR},
    "one of an hour from now": {"begins": HOUR},
}


@pytest.fixture
def resource(tmp_path: Path) -> Resource:
    (tmp_path / "tls").mkdir()
    return Resource(tmp_path / "tls")


def test_parts_of_one_resource_speak_and_a_segment_knows_the_role(resource: Resource) -> None:
    with serving(resource("segment"), resource("gateway")) as world:
        gateway, segment = world.wire(), world.wire(resource("segment"))
        assert asked(gateway, b"{}", b"abc") == (b"{}", b"abc")
        assert asked(segment, b"{}", b"abc") == (b"{}", b"abc")
        assert world.echo.asked == {"gateway": 1, "segment": 1}
        assert world.server.connections == {"gateway": 1, "segment": 1}
        for wire in (gateway, segment):
            wire.close()


@pytest.mark.parametrize("other", OTHERS)
def test_a_stranger_is_refused_before_it_is_greeted_and_the_gateway_is_served(other: str, resource: Resource, tmp_path: Path) -> None:
    changes = dict(OTHERS[other])
    authority, role = changes.pop("authority", resource.authority), changes.pop("role", "gateway")
    folder = authority.write(tmp_path / "stranger", role, trusts=[resource.authority], **changes)  # type: ignore[union-attr,arg-type]
    with serving(resource("segment"), resource("gateway")) as world:
        with pytest.raises(WireError):
            world.wire(Identity(folder, IDENTITY))
        until(lambda: sum(count for (kind, _), count in world.counted.items() if kind == "refused") == 1)
        wire = world.wire()
        assert asked(wire, b"{}", b"x") == (b"{}", b"x")
        assert world.echo.asked == {"gateway": 1}
        wire.close()


@pytest.mark.parametrize("other", OTHERS)
def test_a_server_that_is_not_a_segment_of_the_resource_gets_no_request(other: str, resource: Resource, tmp_path: Path) -> None:
    changes = dict(OTHERS[other])
    authority, role = changes.pop("authority", resource.authority), changes.pop("role", "gateway")
    folder = authority.write(tmp_path / "stranger", role, trusts=[resource.authority], **changes)  # type: ignore[union-attr,arg-type]
    with serving(Identity(folder, IDENTITY), resource("gateway")) as world:
        with pytest.raises(WireError):
            world.wire()
        assert not world.echo.asked


def test_a_gateway_does_not_take_another_gateway_for_a_segment(resource: Resource) -> None:
    with serving(resource("gateway"), resource("gateway")) as world, pytest.raises(WireError, match="expected a segment"):
        world.wire()


def test_without_a_certificate_and_without_tls_there_is_no_greeting(resource: Resource) -> None:
    with serving(resource("segment"), resource("gateway")) as world:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(cadata=resource.authority.pem.decode())
        with socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S) as plain, context.wrap_socket(plain) as nobody:
            nobody.send(GREETING)
            assert ended(nobody)
        with socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S) as plain:
            plain.send(GREETING)
            assert ended(plain)
        until(lambda: sum(world.counted.values()) == 2)
        assert not world.echo.asked


def test_only_tls_1_3_is_spoken(resource: Resource) -> None:
    with serving(resource("segment"), resource("gateway")) as world:
        context = resource("gateway").contexts().client
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        with socket.create_connection(("127.0.0.1", world.server.port), timeout=LONG_S) as plain, pytest.raises(ssl.SSLError):
            context.wrap_socket(plain)


@pytest.mark.parametrize(
    ("role", "allowed"),
    [
        ("gateway", {"step", "infer", "release", "kv_pull", "echo", "stats", "probe"}),
        ("segment", {"step", "infer", "release", "kv_export", "echo"}),
        ("operator", {"probe"}),
    ],
)
def test_each_role_may_ask_for_its_operations_alone(role: str, allowed: set[str], resource: Resource) -> None:
    every = {"step", "infer", "release", "kv_pull", "kv_export", "echo", "stats", "probe"}
    with serving(resource("segment"), resource(role)) as world:
        wire = world.wire()
        answers = {op: json.loads(asked(wire, json.dumps({"v": 1, "op": op}).encode(), b"")[0]) for op in every}
        assert {op for op, answer in answers.items() if "error" not in answer} == allowed
        assert {answer["error"]["code"] for answer in answers.values() if "error" in answer} == {"forbidden"}
        wire.close()


def test_renewed_certificates_are_used_by_new_connections_and_nothing_under_way_is_lost(resource: Resource) -> None:
    """The authority itself is exchanged, as an operator does it: both are trusted, then leaves are new, then the old one is not trusted."""
    server, client = resource("segment"), resource("gateway")
    old, new = resource.authority, Authority()
    with serving(server, client) as world:
        answers: queue.Queue[object] = queue.Queue()
        stop = threading.Event()
        lasting = world.wire()

        def keep_asking() -> None:
            while not stop.is_set():
                answers.put(asked(lasting, b"{}", b"x"))

        asking = threading.Thread(target=keep_asking)
        asking.start()
        for authority, trusts in ((old, [old, new]), (new, [old, new]), (new, [new])):
            for identity, role in ((server, "segment"), (client, "gateway")):
                authority.write(identity._folder, role, trusts=trusts)
                fresh = world.wire()  # one side has the new files, the other one has the old ones
                assert asked(fresh, b"{}", b"y") == (b"{}", b"y")
                fresh.close()
        stop.set()
        asking.join(timeout=LONG_S)
        assert answers.qsize() > 0
        assert all(answers.get() == (b"{}", b"x") for _ in range(answers.qsize()))
        with pytest.raises(WireError):
            world.wire(Identity(old.write(resource.folder / "left", "gateway", trusts=[new]), IDENTITY))
        lasting.close()


def test_files_that_do_not_fit_together_are_not_taken_and_the_old_ones_stay(resource: Resource) -> None:
    server, client = resource("segment"), resource("gateway")
    with serving(server, client) as world:
        (server._folder / "tls.key").write_bytes(b"half a key")
        (client._folder / "ca.crt").unlink()
        wire = world.wire()
        assert asked(wire, b"{}", b"x") == (b"{}", b"x")
        wire.close()


@pytest.mark.parametrize("missing", ["tls.crt", "tls.key", "ca.crt"])
def test_a_segment_without_one_of_the_files_does_not_start(missing: str, resource: Resource) -> None:
    folder = resource("segment")._folder
    os.unlink(folder / missing)
    with pytest.raises(IdentityError, match=missing):
        Identity(folder, IDENTITY)


@pytest.mark.parametrize("name", ["", "chat", f"{IDENTITY}/segment", "https://cluster.local/ns/a/si/b", "spiffe://x/ns/a/si/b\n"])
def test_an_identity_is_a_spiffe_id_without_a_role(name: str, resource: Resource) -> None:
    with pytest.raises(IdentityError, match="is not spiffe"):
        Identity(resource("segment")._folder, name)


def test_another_model_is_refused(resource: Resource) -> None:
    with serving(resource("segment"), resource("gateway")) as world, pytest.raises(WireError, match="does not serve"):
        Wire("127.0.0.1", world.server.port, MODEL + "0", world.identity)
