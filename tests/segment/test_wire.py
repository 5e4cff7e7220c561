"""Real servers on the wire: the unsplit model's tokens, peers that come back, and who is let in."""

import datetime
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client
from identities import IDENTITY, Authority
from random_models import unsplit_greedy
from servers import Chain, Chains

from splitinference_segment.peers.identity import Identity
from splitinference_segment.peers.wire import WireError

LONG_S = 60.0
HOUR = datetime.timedelta(hours=1)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_tokens_are_the_same_over_the_wire_and_a_peer_that_was_killed_is_wired_again(
    models: dict[str, Path], prompt: list[int], chains: Chains
) -> None:
    expected = unsplit_greedy(models["llama"], prompt, 30)
    chain = chains.start(models["llama"], [0, 3, 5, 7])
    client = chain.client()
    assert client.generate(prompt, 30) == expected
    assert client.stats()["wires"] == 1
    chain.servers[1].kill()
    assert client.step("s", 0, prompt)["error"]["code"] == "next_hop_failed"
    chain.servers[1].start()
    chain.servers[1].wait_ready()
    until(lambda: "error" not in client.step("s", 0, prompt))
    assert client.stats()["wires"] == 1
    assert client.generate(prompt, 30) == expected
    chain.close()


def connected(chain: Chain, identity: Identity | None) -> Client:
    server = chain.servers[0]
    client = Client([(server.name, server.model_name, server.port)], identity)
    chain.clients.append(client)
    return client


@pytest.mark.parametrize(
    "stranger", ["no certificate", "another authority", "another resource", "a role that does not exist", "an expired one", "one of later"]
)
def test_strangers_are_refused(stranger: str, halves: Chain, chains: Chains, tmp_path: Path) -> None:
    own = chains.authority

    def write(authority: Authority = own, role: str = "gateway", **changes: object) -> Identity:
        return Identity(authority.write(tmp_path, role, trusts=[own], **changes), IDENTITY)

    identities: dict[str, Callable[[], Identity | None]] = {
        "no certificate": lambda: None,
        "another authority": lambda: write(Authority()),
        "another resource": lambda: write(identity="spiffe://cluster.local/ns/team-a/si/other"),
        "a role that does not exist": lambda: write(role="admin"),
        "an expired one": lambda: write(begins=-3 * HOUR, lasts=HOUR),
        "one of later": lambda: write(begins=HOUR),
    }
    with pytest.raises(WireError):
        connected(halves, identities[stranger]()).stats()
    assert halves.client().stats()["steps"] >= 0


@pytest.mark.parametrize(("role", "op"), [("operator", "stats"), ("operator", "step"), ("segment", "kv_pull"), ("gateway", "kv_export")])
def test_a_role_gets_no_operation_of_another(role: str, op: str, halves: Chain, chains: Chains, tmp_path: Path) -> None:
    client = connected(halves, Identity(chains.authority.write(tmp_path, role), IDENTITY))
    meta = {"v": 1, "op": op, "sequence": "s", "position": 0, "tokens": 1, "tensor": {"dtype": "int64", "shape": [1]}}
    assert client.call(meta)["error"]["code"] == "forbidden"


def test_the_operator_may_prove_a_segment(halves: Chain, chains: Chains, tmp_path: Path) -> None:
    client = connected(halves, Identity(chains.authority.write(tmp_path, "operator"), IDENTITY))
    assert client.call({"v": 1, "op": "probe", "deadline_ms": 30000}, b"\0")["ok"] is True


def test_certificates_are_renewed_while_steps_run_and_nothing_is_lost(
    models: dict[str, Path], prompt: list[int], chains: Chains, tmp_path: Path
) -> None:
    """The authority is exchanged in three steps, and a segment is restarted after each, so that its peers connect anew."""
    old, new = Authority(), Authority()
    folders = {role: old.write(tmp_path / role, role, trusts=[old]) for role in ("segment", "gateway")}
    chain = chains.start(models["llama"], [0, 3, 7], SI_TLS_FOLDER=str(folders["segment"]))
    chain.identity = Identity(folders["gateway"], IDENTITY)
    expected = unsplit_greedy(models["llama"], prompt, 30)
    running, stop = chain.client(), threading.Event()
    failures: list[object] = []
    rounds = 0

    def keep_going() -> None:
        nonlocal rounds
        while not stop.is_set():
            try:
                tokens = running.generate(prompt, 30)
            except Exception as problem:  # noqa: BLE001 - whatever it is, the test tells it
                failures.append(problem)
                return
            if tokens != expected:
                failures.append(tokens)
            rounds += 1

    thread = threading.Thread(target=keep_going)
    thread.start()
    for authority, trusts in ((old, [old, new]), (new, [old, new]), (new, [new])):
        for role, folder in folders.items():
            authority.write(folder, role, trusts=trusts)
            fresh = chain.client()
            assert fresh.generate(prompt, 30) == expected
            fresh.close()
        before = rounds
        until(lambda before=before: rounds > before or bool(failures))
    stop.set()
    thread.join()
    assert not failures
    for server in chain.servers:  # their own connections of before end here, and new ones are made with the new certificates
        server.kill()
        server.start()
    for server in chain.servers:
        server.wait_ready()
    until(lambda: "error" not in chain.client().step("s", 0, prompt))
    with pytest.raises(WireError):
        connected(chain, Identity(old.write(tmp_path / "left", "gateway", trusts=[new]), IDENTITY)).stats()
    chain.close()


def test_a_step_of_more_tokens_than_are_taken_at_once_is_refused_with_the_number(chains: Chains, models: dict[str, Path]) -> None:
    chain = chains.start(models["llama"], [0, 7], SI_MAX_STEP_TOKENS="32")
    client = chain.client()
    assert "token" in client.step("s", 0, [1] * 32)
    problem = client.step("s", 0, [1] * 33)["error"]
    assert (problem["code"], "at most 32" in problem["message"]) == ("bad_request", True)
    assert client.step("s", 0, [1] * 20_000)["error"]["code"] == "bad_request"
    assert json.dumps(client.stats())
    chain.close()
