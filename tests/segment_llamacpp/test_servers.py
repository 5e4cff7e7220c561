"""Real segment servers with the llama.cpp engine: the same entry point, wire, probe and answers as with torch."""

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_gguf import BLOCKS, VOCABULARY, make
from servers import Chain, Chains
from unsplit import Unsplit

PROMPT = [(11 * i * i + 5 * i + 2) % VOCABULARY for i in range(24)]
ENGINE = {"SI_ENGINE": "llamacpp"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def expected(model: Path) -> list[int]:
    """Greedy tokens of the unsplit model."""
    unsplit, tokens, held = Unsplit(model), list(PROMPT), 0
    for _ in range(12):
        logits = unsplit.last(tokens[held:], held)
        held = len(tokens)
        tokens.append(int(logits.argmax()))
    unsplit.model.close()
    return tokens[len(PROMPT) :]


@pytest.fixture(scope="module")
def chain(chains: Chains, model: Path) -> Iterator[Chain]:
    made = chains.start(model, [0, 4, 7, BLOCKS + 2], **ENGINE)
    yield made
    made.close()


def test_three_segments_say_what_the_unsplit_model_says(chain: Chain, expected: list[int]) -> None:
    assert chain.client().generate(PROMPT, 12) == expected


def test_neither_torch_nor_transformers_is_in_the_process(chain: Chain) -> None:
    (stub,) = chain.servers[0].children("triton_python_backend_stub")
    maps = Path(f"/proc/{stub}/maps").read_text()
    assert "libllama" in maps
    assert "torch" not in maps
    assert "tokenizers" not in maps


def test_seeded_sampling_is_the_same_again(chain: Chain) -> None:
    settings = {"temperature": 0.9, "top_p": 0.9, "seed": 11}
    first = chain.client().generate(PROMPT, 8, **settings)
    assert chain.client().generate(PROMPT, 8, chunk=5, **settings)[:1] == first[:1]
    assert chain.client().generate(PROMPT, 8, **settings) == first


def test_a_segment_that_was_started_anew_is_replayed(chain: Chain, expected: list[int]) -> None:
    client = chain.client()
    assert client.generate(PROMPT, 4, sequence="again") == expected[:4]
    chain.servers[1].kill()
    chain.servers[1].start()
    chain.servers[1].wait_ready()
    answer = client.step("again", len(PROMPT) + 3, expected[3:4])
    assert answer["error"]["code"] == "kv_missing"
    answer = client.step("again", 0, [*PROMPT, *expected[:4]])
    assert answer["token"] == expected[4]


def test_metrics_count_steps_and_kv(chain: Chain) -> None:
    chain.client().generate(PROMPT, 2)
    port = chain.servers[0].environment["SI_METRICS_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    assert "splitinference_segment_kv_bytes" in text


def test_a_file_that_is_cut_short_ends_the_server_with_the_reason(chains: Chains, model: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(model.read_bytes()[:-1000])
    (server,) = chains.describe(tmp_path, [0, BLOCKS + 2], **ENGINE).servers
    server.start()
    assert server.process is not None
    assert server.process.wait(timeout=120) != 0
    assert "m.gguf is cut short" in server.log.read_text()
