"""Settings: read once from the environment, wrong ones refused by name."""

from pathlib import Path

import pytest

from splitinference_protocol.wire.errors import SegmentError
from splitinference_segment.peers.hops import address_of
from splitinference_segment.server.serve import MODEL_CODE, command, environment, write_repository
from splitinference_segment.settings import Settings, SettingsError

GIVEN = {
    "SI_SEGMENT": "chat-0-12-1a2b3c4d",
    "SI_MODEL_NAME": "seg-9f8e7d6c-0-12",
    "SI_MODEL_PATH": "/model",
    "SI_LAYERS": "0:12",
    "SI_PEER_PREFIX": "chat-",
    "SI_PEER_SUFFIX": ".ns.svc.cluster.local",
    "SI_TLS_FOLDER": "/var/run/splitinference/tls",
    "SI_IDENTITY": "spiffe://cluster.local/ns/ns/si/chat",
}


def test_only_what_is_particular_must_be_given() -> None:
    settings = Settings.from_environment(GIVEN)
    assert (settings.start, settings.end, settings.grpc_port, settings.threads) == (0, 12, 8001, 1)
    assert settings.kv_idle_seconds == 300
    assert Settings.from_environment({**GIVEN, "SI_GATHER_MS": "0"}).gather_ms == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"SI_SEGMENT": ""}, "SI_SEGMENT is not set"),
        ({"SI_SEGMENT": "Chat.x"}, "SI_SEGMENT is 'Chat.x', expected a DNS label"),
        ({"SI_LAYERS": "12"}, "expected start:end"),
        ({"SI_LAYERS": "5:5"}, "expected start:end with start < end"),
        ({"SI_DTYPE": "int4"}, "SI_DTYPE is 'int4', expected one of float32, bfloat16, float16"),
        ({"SI_MAX_SEQUENCES": "0"}, "SI_MAX_SEQUENCES is 0, expected at least 1"),
        ({"SI_KV_BYTES": "1GiB"}, "SI_KV_BYTES is '1GiB', expected a whole number"),
        ({"SI_KV_IDLE_SECONDS": "0"}, "SI_KV_IDLE_SECONDS is 0, expected more than 0 seconds"),
        ({"SI_KV_IDLE_SECONDS": "nan"}, "SI_KV_IDLE_SECONDS is nan, expected more than 0 seconds"),
        ({"SI_GATHER_MS": "-1"}, "SI_GATHER_MS is -1, expected 0 milliseconds or more"),
        ({"SI_GATHER_MS": "soon"}, "SI_GATHER_MS is 'soon', expected milliseconds"),
        ({"SI_TLS_FOLDER": ""}, "SI_TLS_FOLDER is not set"),
        ({"SI_IDENTITY": ""}, "SI_IDENTITY is '', expected spiffe://"),
        ({"SI_IDENTITY": "spiffe://cluster.local/ns/ns/si/chat/segment"}, "expected spiffe://<trust domain>/ns/<namespace>/si/<name>"),
        ({"SI_INSECURE": "true"}, "SI_INSECURE=true and SI_TLS_FOLDER exclude each other"),
        ({"SI_INSECURE": "yes"}, "SI_INSECURE is 'yes', expected one of true, false"),
        ({"SI_WIRE_PORT": "0"}, "SI_WIRE_PORT is 0, expected at least 1"),
        ({"SI_PEER_ADDRESSES": "["}, "SI_PEER_ADDRESSES is not JSON"),
    ],
)
def test_a_wrong_variable_is_refused_by_name(changes: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment({**GIVEN, **changes})


def test_a_peer_is_addressed_by_name_and_suffix() -> None:
    settings = Settings.from_environment(GIVEN)
    assert address_of("chat-12-22-1a2b3c4d", settings) == "chat-12-22-1a2b3c4d.ns.svc.cluster.local:8003"


@pytest.mark.parametrize(
    "name", ["10.0.0.1", "chat-x.evil", "chat-x:22", "other-12-22-x", "chat-X", "chat-", "", "chat-x/../y", "chat-" + "x" * 70]
)
def test_a_hop_can_never_be_an_address_or_a_foreign_name(name: str) -> None:
    with pytest.raises(SegmentError) as caught:
        address_of(name, Settings.from_environment(GIVEN))
    assert caught.value.code == "bad_request"


def test_the_repository_holds_one_model_of_the_given_name(tmp_path: Path) -> None:
    write_repository(tmp_path, "seg-9f8e7d6c-0-12")
    assert 'name: "seg-9f8e7d6c-0-12"' in (tmp_path / "seg-9f8e7d6c-0-12" / "config.pbtxt").read_text()
    assert (tmp_path / "seg-9f8e7d6c-0-12" / "1" / "model.py").read_text() == MODEL_CODE


def test_the_server_loads_that_model_alone() -> None:
    line = command(Settings.from_environment(GIVEN), Path("/r"), 30001, "key")
    assert "--model-control-mode=none" in line
    assert not any(word.startswith("--load-model") for word in line)


def test_no_port_of_the_server_is_open_to_other_pods() -> None:
    line = command(Settings.from_environment(GIVEN), Path("/r"), 30001, "key")
    for kind in ("http", "grpc", "metrics"):
        assert f"--{kind}-address=127.0.0.1" in line


def test_certificates_are_left_out_only_where_that_is_asked_for() -> None:
    assert Settings.from_environment({**GIVEN, "SI_TLS_FOLDER": "", "SI_INSECURE": "true"}).tls_folder is None


def test_the_server_asks_for_large_pages_and_whoever_starts_the_segment_may_say_otherwise() -> None:
    settings = Settings.from_environment(GIVEN)
    assert environment(settings, {})["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    given = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0", "PATH": "/bin"}
    made = environment(settings, given)
    assert {name: made[name] for name in given} == given
    assert made["OMP_NUM_THREADS"] == "1"
