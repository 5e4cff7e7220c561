"""Three real Triton servers that together are a model: same tokens as the whole, refusals by name, recovery by replay."""

import base64
import json
import math
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from client import Client
from random_models import unsplit_greedy
from servers import PREFIX, Chain, Chains, Server

from splitinference_segment.peers.wire import WireError

COUNT = 20
LONG_S = 120.0  # only keeps a broken test from hanging


@pytest.fixture(scope="module")
def chain(chains: Chains, models: dict[str, Path]) -> Chain:
    return chains.start(models["llama"], [0, 2, 4, 7])


@pytest.fixture
def client(chain: Chain) -> Iterator[Client]:
    client = chain.client()
    yield client
    for start in range(3):  # nothing of one test is left for the next
        chain.client(start).release("s")
    client.close()


@pytest.fixture(scope="module")
def expected(models: dict[str, Path], prompt: list[int]) -> list[int]:
    return unsplit_greedy(models["llama"], prompt, COUNT)


def code_of(answer: dict[str, Any]) -> str:
    return str(answer["error"]["code"])


def test_three_segments_give_the_unsplit_models_tokens(client: Client, prompt: list[int], expected: list[int]) -> None:
    assert client.generate(prompt, COUNT) == expected


def test_every_stage_tells_its_times_in_order(chain: Chain, client: Client, prompt: list[int]) -> None:
    answer = client.step("s", 0, prompt)
    assert [timing["segment"] for timing in answer["timings"]] == [server.name for server in chain.servers]
    hops = [timing["hop_ms"] for timing in answer["timings"]]
    assert hops[0] > hops[1] > hops[2] == 0
    held = [timing["held_ms"] for timing in answer["timings"]]
    assert held[0] > hops[0] > held[1] > hops[1] > held[2] > 0
    assert all(timing["compute_ms"] > 0 for timing in answer["timings"])
    assert [timing["share"] for timing in answer["timings"]] == [1.0, 1.0, 1.0], "nothing was computed with it"


def test_a_prefill_in_chunks_gives_the_same_tokens_and_no_token_before_the_last(
    client: Client, prompt: list[int], expected: list[int]
) -> None:
    assert client.generate(prompt, COUNT, chunk=6) == expected
    assert "token" not in client.step("s", 0, prompt[:6], sample=False)


def test_four_sequences_at_once_do_not_disturb_each_other(chain: Chain, models: dict[str, Path], prompt: list[int]) -> None:
    prompts = [prompt, prompt[:5], prompt[7:], prompt[::-1]]
    wanted = [unsplit_greedy(models["llama"], each, COUNT) for each in prompts]
    got: list[list[int]] = [[] for _ in prompts]

    def run(i: int) -> None:
        got[i] = chain.client().generate(prompts[i], COUNT, chunk=8)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_seeded_sampling_does_not_depend_on_the_split(
    chains: Chains, client: Client, models: dict[str, Path], prompt: list[int], expected: list[int]
) -> None:
    settings = {"temperature": 1.0, "top_p": 0.95, "seed": 1234}
    whole = chains.start(models["llama"], [0, 7])
    tokens = client.generate(prompt, COUNT, **settings)
    assert whole.client().generate(prompt, COUNT, **settings) == tokens
    assert tokens != expected
    assert client.generate(prompt, COUNT, **{**settings, "seed": 1235}) != tokens
    whole.close()


def test_logprobs_come_from_the_last_segment(client: Client, prompt: list[int]) -> None:
    answer = client.step("s", 0, prompt, sampling={"temperature": 0.0, "logprobs": 3})
    assert len(answer["top_logprobs"]) == 3
    assert answer["top_logprobs"][0] == [answer["token"], pytest.approx(answer["logprob"])]


def test_the_prompt_is_scored_alike_in_one_chunk_and_in_several_and_as_it_was_sampled(
    client: Client, prompt: list[int], expected: list[int]
) -> None:
    tokens = prompt + expected

    def scores(chunk: int) -> list[float]:
        made: list[float] = []
        for start in range(0, len(tokens), chunk):
            piece, targets = tokens[start : start + chunk], tokens[start + 1 : start + chunk + 1]
            packed = base64.b64encode(b"".join(bytes([t & 0x7F | 0x80, t >> 7]) for t in targets)).decode()
            answer = client.step("scores", start, piece, sample=False, **({"targets": packed} if targets else {}))
            made += [logprob for logprob, _ in answer.get("scored", [])]
        client.release("scores")
        return made

    whole = scores(len(tokens))
    assert len(whole) == len(tokens) - 1
    assert scores(7) == pytest.approx(whole, abs=1e-3)
    sampled = client.step("s", 0, prompt)
    client.release("s")
    assert whole[len(prompt) - 1] == pytest.approx(sampled["logprob"], abs=1e-3)


def test_penalties_and_bias_work_through_the_chain(client: Client, prompt: list[int], expected: list[int]) -> None:
    first = expected[0]
    for sampling in ({"banned": [first]}, {"bias": [[first, -100.0]]}):
        answer = client.step("s", 0, prompt, sampling={"temperature": 0.0, **sampling})
        client.release("s")
        assert answer["token"] != first
    answer = client.step("s", 0, prompt, sampling={"temperature": 0.0, "banned": [1_000_000]})
    assert answer["error"]["code"] == "bad_request"
    assert "vocabulary" in answer["error"]["message"]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_sequence_lost_in_one_segment_is_kv_missing_and_continues_by_replay(
    lost: int, chain: Chain, client: Client, prompt: list[int], expected: list[int]
) -> None:
    tokens = list(prompt)
    for i in range(6):
        answer = client.step("s", 0 if i == 0 else len(tokens) - 1, tokens if i == 0 else tokens[-1:])
        tokens.append(answer["token"])
    server = chain.servers[lost]
    Client([(server.name, server.model_name, server.port)], chain.identity).release("s")
    answer = client.step("s", len(tokens) - 1, tokens[-1:])
    assert (code_of(answer), answer["error"]["segment"]) == ("kv_missing", server.name)
    answer = client.step("s", 0, tokens)  # the gateway's replay: everything so far, from position 0
    tokens.append(answer["token"])
    while len(tokens) < len(prompt) + COUNT:
        tokens.append(client.step("s", len(tokens) - 1, tokens[-1:])["token"])
    assert tokens[len(prompt) :] == expected


def test_a_step_sent_twice_is_kv_missing_not_a_wrong_token(client: Client, prompt: list[int]) -> None:
    token = client.step("s", 0, prompt)["token"]
    client.step("s", len(prompt), [token])
    assert code_of(client.step("s", len(prompt), [token])) == "kv_missing"


def test_release_frees_the_whole_chain(chain: Chain, client: Client, prompt: list[int]) -> None:
    before = [chain.client(i).stats()["sequences"] for i in range(3)]
    client.step("s", 0, prompt)
    assert [chain.client(i).stats()["sequences"] for i in range(3)] == [n + 1 for n in before]
    assert client.release("s")["ok"] is True
    assert [chain.client(i).stats()["sequences"] for i in range(3)] == before


def test_more_sequences_than_allowed_are_kv_full_until_one_is_released(client: Client) -> None:
    for i in range(8):
        assert "token" in client.step(f"full-{i}", 0, [1, 2, 3])
    assert code_of(client.step("s", 0, [1, 2, 3])) == "kv_full"
    client.release("full-0")
    assert "token" in client.step("s", 0, [1, 2, 3])
    for i in range(8):
        client.release(f"full-{i}")


@pytest.mark.parametrize(
    "name", ["10.0.0.1", f"{PREFIX}2-4-0.evil.example", f"{PREFIX}2-4-0:80", "other-2-4-00000000", f"{PREFIX}UPPER", "localhost"]
)
def test_a_hop_that_is_not_a_segment_of_this_resource_is_refused(name: str, client: Client) -> None:
    route = client.hops()
    answer = client.step("s", 0, [1], route=[{**route[0], "segment": name}, *route[1:]])
    assert code_of(answer) == "bad_request"
    answer = client.step("s", 0, [1], route=[route[0], {**route[1], "segment": name}])
    assert code_of(answer) == "bad_request"


def test_a_route_that_does_not_fit_the_layers_is_wrong_segment(chain: Chain, client: Client) -> None:
    route = client.hops()
    for wrong in ([], route[1:], [{**route[0], "model": "seg-ffff0000-2-4"}, route[1]]):
        assert code_of(client.step("s", 0, [1], route=wrong)) == "wrong_segment"
    assert code_of(client.step("s", 0, [1], tensor={"dtype": "float32", "shape": [1, 2]})) == "wrong_segment"
    assert code_of(chain.client(1).step("s", 0, [1])) == "wrong_segment"  # token ids to a segment that takes hidden states


@pytest.mark.parametrize("meta", [b"not json", b"[]", b'{"v": 1}', b'{"v": 9, "op": "probe"}', b"\xff"])
def test_broken_meta_is_a_bad_request(meta: bytes, client: Client) -> None:
    assert code_of(client.call(meta)) == "bad_request"


def test_data_that_does_not_match_its_description_is_a_bad_request(client: Client) -> None:
    assert code_of(client.step("s", 0, [1, 2], tensor={"dtype": "int64", "shape": [3]})) == "bad_request"


@pytest.mark.parametrize("token", [-1, 211, 1 << 40])
def test_a_token_outside_the_vocabulary_is_a_bad_request_that_says_the_range(token: int, client: Client) -> None:
    answer = client.step("s", 0, [1, token])
    assert code_of(answer) == "bad_request"
    assert "0 to 210" in answer["error"]["message"]


def test_a_position_beyond_the_longest_context_is_a_bad_request(client: Client) -> None:
    assert code_of(client.step("s", 0, [1] * 257)) == "bad_request"
    assert "token" in client.step("s", 0, [1] * 256)
    assert code_of(client.step("s", 256, [1])) == "bad_request"


def test_a_deadline_that_is_over_is_told(client: Client) -> None:
    assert code_of(client.step("s", 0, [1] * 200, deadline_ms=0.01)) == "deadline_exceeded"


def test_large_hidden_states_survive_every_boundary(chain: Chain, client: Client, prompt: list[int]) -> None:
    """200 tokens of 64 floats cross two boundaries; the middle segment's own answer to raw bytes is the whole chain's."""
    long = (prompt * 10)[:200]
    first = client.step("s", 0, long)
    again = client.generate(long, 1, chunk=50)
    assert [first["token"]] == again


def test_numbers_come_through_a_boundary_unchanged(chain: Chain) -> None:
    """Hidden states given by the test: the same bytes give the same logprobs, one bit changed gives others."""
    middle = chain.servers[1]
    client = chain.client(1)
    values = [((i * 37) % 101 - 50) / 25 for i in range(3 * 64)]

    def logprobs(numbers: list[float]) -> Any:
        meta = {
            "v": 1,
            "op": "step",
            "sequence": "s",
            "position": 0,
            "tensor": {"dtype": "float32", "shape": [3, 64]},
            "route": client.hops(),
            "sample": True,
            "sampling": {"temperature": 0.0, "logprobs": 20},
        }
        return client.call(meta, struct.pack(f"<{len(numbers)}f", *numbers))["top_logprobs"]

    assert middle.model_name.endswith("-2-4")
    assert logprobs(values) == logprobs(values)
    assert logprobs(values) != logprobs([*values[:-1], values[-1] + 0.5])


def metrics(server: Server) -> dict[str, float]:
    """The segment's own metrics, by series."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.environment['SI_METRICS_PORT']}/metrics") as page:
        lines = [line.rsplit(" ", 1) for line in page.read().decode().splitlines() if line.startswith("splitinference_segment_")]
    return {name.replace(" ", ""): float(value) for name, value in lines}


def counted(server: Server, holds: Callable[[dict[str, float]], bool] = lambda _: True) -> dict[str, float]:
    """The metrics with all that happened until now, once they are as wanted. The server has a link: the age of what is known of it changes
    with each round in which numbers are handed over, and a round that began before this call may have missed the last of them."""
    deadline, rounds, seen = time.monotonic() + LONG_S, 0, None
    while True:
        found = metrics(server)
        ages = {name: value for name, value in found.items() if "link_rtt_age_seconds" in name}
        rounds, seen = rounds + (seen is not None and ages != seen), ages
        if rounds >= 2 and holds(found):
            return found
        assert time.monotonic() < deadline, f"not handed over, or not as wanted: {found}"
        time.sleep(0.1)


def series(server: Server, name: str, **labels: str) -> str:
    pairs = ",".join(f'{k}="{v}"' for k, v in sorted({"segment": server.name, **labels}.items()))
    return f"splitinference_segment_{name}{{{pairs}}}"


def test_metrics_count_steps_tokens_and_hops(chain: Chain, client: Client, prompt: list[int]) -> None:
    first, second = chain.servers[0], chain.servers[1]
    client.step("t", 0, prompt)  # so that there is a link
    before = counted(first)
    client.step("s", 0, prompt)
    client.step("s", len(prompt), [1])

    def gained(name: str, **labels: str) -> float:
        return after[series(first, name, **labels)] - before.get(series(first, name, **labels), 0.0)

    hops = series(first, "hops_total", to=second.name)
    after = counted(first, lambda found: found[hops] >= before[hops] + 2)

    assert gained("steps_total", phase="prefill") == 1
    assert gained("tokens_total", phase="prefill") == len(prompt)
    assert gained("steps_total", phase="decode") == 1
    assert gained("hops_total", to=second.name) == 2
    assert gained("hop_bytes_total", to=second.name) == (len(prompt) + 1) * 64 * 4
    assert gained("hop_seconds_total", to=second.name) > 0
    assert 0 < gained("link_seconds_total", to=second.name) < gained("hop_seconds_total", to=second.name)
    assert gained("compute_seconds_total", phase="decode") > 0
    assert after[series(first, "sequences")] >= 1
    assert after[series(first, "kv_bytes")] > 0


def test_links_are_told_by_nodes(chain: Chain, client: Client, prompt: list[int]) -> None:
    first, second = chain.servers[0], chain.servers[1]
    client.generate(prompt, 12)
    for _ in range(4):
        client.step("s", 0, [1] * 200)  # 51,200 bytes to the next segment
    found = counted(first)
    link = {"to": second.name, "source": f"node-of-{first.name}", "target": f"node-of-{second.name}"}
    assert 0 < found[series(first, "link_rtt_ms", **link)] < 1000
    assert 0 <= found[series(first, "link_rtt_age_seconds", **link)] < 60
    mbps = found[series(first, "link_mbps", **link)]
    assert math.isnan(mbps) or mbps > 0, "inside one machine it is usually too quick to be seen, which is not a number"
    assert 0 <= found[series(first, "link_mbps_age_seconds", **link)] < 60


def test_errors_are_counted_by_code_and_answered_as_answers_not_as_transport_failures(client: Client) -> None:
    answer = client.call({"v": 1, "op": "step"})
    assert json.dumps(answer["error"])
    assert code_of(answer) == "bad_request"


def test_a_model_name_that_is_not_served_is_a_transport_error(chain: Chain) -> None:
    stranger = Client([(chain.servers[0].name, "seg-00000000-0-2", chain.servers[0].port)], chain.identity)
    with pytest.raises(WireError, match="does not serve"):
        stranger.stats()
