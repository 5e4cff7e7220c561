"""What breaks and how it is seen: a dead stub, a dead server, a dead peer, a wrong setting."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from client import Client
from host import free_ports
from random_models import unsplit_greedy
from servers import Chain, Chains

from splitinference_segment.peers.wire import WireError


@pytest.fixture(scope="module")
def two(chains: Chains, models: dict[str, Path]) -> Chain:
    return chains.start(models["llama"], [0, 4, 7])


@pytest.fixture
def chain(two: Chain) -> Chain:
    """Both serve: what the test before ended is started again."""
    for server in two.servers:
        if server.process is None or server.process.poll() is not None:
            server.start()
    for server in two.servers:
        server.wait_ready()
    first_token(two.client(), [1, 2, 3])
    return two


def first_token(client: Client, tokens: list[int]) -> int:
    """What follows the tokens. A peer that was away is asked again after a second at the latest: until then it is `next_hop_failed`. And
    our own connection of before a restart may only now be found closed."""
    deadline = time.monotonic() + 30
    while True:
        try:
            answer = client.step("s", 0, tokens)
        except WireError:
            pass
        else:
            if "error" not in answer:
                return int(answer["token"])
            assert answer["error"]["code"] == "next_hop_failed"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_stub_ends_its_server_and_the_peer_says_next_hop_failed(chain: Chain) -> None:
    first, second = chain.servers
    assert second.command("segment-probe").returncode == 0
    (stub,) = second.children("triton_python_backend_stub")
    os.kill(stub, signal.SIGKILL)
    assert second.process is not None
    assert second.process.wait(timeout=20) == 128 + signal.SIGKILL
    assert second.command("segment-probe", "5").returncode == 1
    assert second.shared_memory() == []
    assert first.command("segment-probe").returncode == 0
    answer = chain.client().step("s", 0, [1, 2, 3])
    assert (answer["error"]["code"], answer["error"]["segment"]) == ("next_hop_failed", first.name)


def test_a_killed_server_leaves_no_shared_memory_once_restarted_and_the_sequence_continues_by_replay(
    chain: Chain, models: dict[str, Path], prompt: list[int]
) -> None:
    expected = unsplit_greedy(models["llama"], prompt, 6)
    client, second = chain.client(), chain.servers[1]
    tokens = list(prompt)
    tokens.append(client.step("s", 0, tokens)["token"])
    regions = second.shared_memory()
    assert regions
    (server,) = second.children("tritonserver")
    (stub,) = second.children("triton_python_backend_stub")
    assert second.process is not None
    # The whole pod dies at once: nobody is left to clean up.
    for pid in (second.process.pid, server, stub):
        os.kill(pid, signal.SIGKILL)
    second.process.wait()
    assert second.shared_memory() == regions
    answer = client.step("s", len(prompt), tokens[-1:])
    assert (answer["error"]["code"], answer["error"]["segment"]) == ("next_hop_failed", chain.servers[0].name)
    second.start()
    second.wait_ready()
    assert not set(regions) & set(second.shared_memory())
    while len(tokens) < len(prompt) + 6:
        tokens.append(first_token(client, tokens))
    assert tokens[len(prompt) :] == expected
    assert second.stop() == 0
    assert second.shared_memory() == []


def test_a_server_killed_alone_takes_its_stub_and_its_shared_memory_along(chain: Chain) -> None:
    server = chain.servers[0]
    (triton,) = server.children("tritonserver")
    (stub,) = server.children("triton_python_backend_stub")
    os.kill(triton, signal.SIGKILL)
    assert server.process is not None
    assert server.process.wait(timeout=20) == 128 + signal.SIGKILL
    assert server.shared_memory() == []
    deadline = time.monotonic() + 60
    while (Path("/proc") / str(stub) / "exe").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not (Path("/proc") / str(stub) / "cmdline").exists() or not (Path("/proc") / str(stub) / "cmdline").read_bytes()


def test_sigterm_ends_the_server_with_success_and_cleans_up(chain: Chain) -> None:
    server = chain.servers[0]
    assert server.shared_memory()
    assert server.stop() == 0
    assert server.shared_memory() == []


def test_drain_waits_while_steps_come_and_returns_when_they_stop(chain: Chain) -> None:
    server, client = chain.servers[0], chain.client()
    quiet = server.command("segment-drain", "10", "0.5")
    assert (quiet.returncode, quiet.stdout) == (0, "quiet\n")
    stop = threading.Event()

    def keep_stepping() -> None:
        while not stop.is_set():
            client.step("s", 0, [1, 2])
            time.sleep(0.05)

    thread = threading.Thread(target=keep_stepping)
    thread.start()
    busy = server.command("segment-drain", "2", "0.5")
    stop.set()
    thread.join()
    assert (busy.returncode, busy.stdout) == (0, "still stepping after 2 s\n")
    server.kill()
    gone = server.command("segment-drain", "10")
    assert gone.returncode == 0
    assert "does not answer" in gone.stderr


def test_idle_sequences_are_forgotten(chains: Chains, models: dict[str, Path]) -> None:
    chain = chains.start(models["llama"], [0, 7], SI_KV_IDLE_SECONDS="1")
    client = chain.client()
    client.step("s", 0, [1, 2, 3])
    assert client.stats()["sequences"] == 1
    deadline = time.monotonic() + 60
    while client.stats()["sequences"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client.step("s", 3, [4])["error"]["code"] == "kv_missing"
    chain.close()


def test_a_byte_budget_too_small_is_kv_full_with_the_numbers(chains: Chains, models: dict[str, Path]) -> None:
    per_token = 2 * 5 * 2 * 16 * 4
    chain = chains.start(models["llama"], [0, 7], SI_KV_BYTES=str(40 * per_token))
    client = chain.client()
    assert "token" in client.step("s", 0, [1] * 40)
    answer = client.step("s", 40, [1])
    assert answer["error"]["code"] == "kv_full"
    assert str(40 * per_token) in answer["error"]["message"]
    chain.close()


def test_a_peer_that_does_not_exist_is_next_hop_failed(chains: Chains, models: dict[str, Path]) -> None:
    (port,) = free_ports(1)
    chain = chains.start(models["llama"], [0, 4], SI_PEER_ADDRESSES=f'{{"chat-4-7-x": "127.0.0.1:{port}"}}')
    server = chain.servers[0]
    client = Client([(server.name, server.model_name, server.port), ("chat-4-7-x", "seg-abcd1234-4-7", port)], chain.identity)
    assert client.step("s", 0, [1, 2])["error"]["code"] == "next_hop_failed"
    chain.close()


def test_a_wrong_setting_ends_segment_serve_with_one_sentence(chains: Chains, models: dict[str, Path]) -> None:
    (server,) = chains.describe(models["llama"], [0, 7], SI_LAYERS="7:3").servers
    refused = server.command("segment-serve")
    assert (refused.returncode, refused.stderr) == (2, "segment-serve: SI_LAYERS is '7:3', expected start:end with start < end\n")


def test_a_model_that_cannot_be_read_ends_segment_serve_and_says_why(chains: Chains, models: dict[str, Path]) -> None:
    (server,) = chains.describe(models["llama"], [0, 7], SI_LAYERS="5:99").servers
    refused = server.command("segment-serve", timeout_s=90)
    assert refused.returncode not in {0, None}
    assert "layers 5:99 are not in this model, which has 0:7" in refused.stderr
    assert server.shared_memory() == []
