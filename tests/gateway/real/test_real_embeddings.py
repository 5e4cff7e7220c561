"""The encoder all-MiniLM-L6-v2 in one, two and three real segments: embeddings as sentence-transformers itself makes them.

`minilm.json` has sentence-transformers' vectors with the versions that made them; `sentence_transformers_answers.py` writes it.
Runs in images/gateway/Dockerfile.test.
"""

import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tokenizers import Tokenizer

from tests.gateway.real_segments import Inside, Segment, gateway, wait_for
from tests.segment.host import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("segment-serve") is None or "SI_TEST_ENCODER_PATH" not in os.environ,
    reason="needs segment-serve and an encoder (SI_TEST_ENCODER_PATH): images/gateway/Dockerfile.test with e2e/data_plane.py has both",
)

MODEL = "sentence/all-minilm-l6-v2"
PREFIX = "minilm"
CUTS = {1: ((0, 8),), 2: ((0, 4), (4, 8)), 3: ((0, 3), (3, 6), (6, 8))}
ANSWERS = Path(__file__).parents[1] / "minilm.json"
MOST_DIFFERENCE = 2e-6  # of a number of a vector of length 1, in float32
LEAST_COSINE = 1 - 1e-6


@dataclass
class Stack:
    """The gateway, and segments of three ways to cut the model."""

    http: int
    grpc: int
    segments: dict[int, list[Segment]]
    route_file: Path
    inside: Inside

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.http}/v1", api_key="none", max_retries=0, timeout=600)

    def cut(self, number: int) -> None:
        """Cut over to so many segments."""
        revision = f"r{number}"
        document = {"v": 1, "revision": revision, "pipelines": [[s.hop for s in self.segments[number]]], "drainSeconds": 1}
        self.route_file.with_suffix(".new").write_text(json.dumps(document))
        self.route_file.with_suffix(".new").rename(self.route_file)
        wait_for(lambda: self.inside.routes()["revision"] == revision)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder, model = tmp_path_factory.mktemp("embeddings"), os.environ["SI_TEST_ENCODER_PATH"]
    cuts = [cut for several in CUTS.values() for cut in several]
    ports = free_ports(3 * len(cuts) + 2)
    addresses = {f"{PREFIX}-{start}-{end}": f"127.0.0.1:{ports[3 * i + 1]}" for i, (start, end) in enumerate(cuts)}
    made = [
        Segment(PREFIX, *cut, ports[3 * i : 3 * i + 3], addresses, folder / f"segment-{i}.log", model_path=model)
        for i, cut in enumerate(cuts)
    ]
    for segment in made:
        segment.serve()
    by_cut = {(segment.start, segment.end): segment for segment in made}
    segments = {number: [by_cut[cut] for cut in several] for number, several in CUTS.items()}
    route_file = folder / "route.json"
    route_file.write_text(json.dumps({"v": 1, "revision": "r0", "pipelines": [[s.hop for s in segments[1]]], "drainSeconds": 1}))
    settings = {
        "SI_MODEL_ID": MODEL,
        "SI_MODEL_PATH": model,
        "SI_ROUTE_FILE": str(route_file),
        "SI_PEER_ADDRESSES": json.dumps(addresses),
        "SI_PORT": str(ports[-2]),
        "SI_KSERVE_PORT": str(ports[-1]),
        "SI_MAX_CONTEXT_TOKENS": "512",
        "SI_REPLAY_SECONDS": "300",
        **(inside := Inside.of(folder)).settings,
    }
    with gateway(settings, folder, f"http://127.0.0.1:{ports[-2]}", made):
        yield Stack(ports[-2], ports[-1], segments, route_file, inside)


@pytest.fixture(scope="module")
def answers() -> Any:
    return json.loads(ANSWERS.read_text())


def compared(made: Any, wanted: Any) -> tuple[float, float]:
    """The smallest cosine and the largest difference of a number."""
    ours, theirs = np.asarray(made, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    cosines = (ours * theirs).sum(axis=1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    return float(cosines.min()), float(np.abs(ours - theirs).max())


@pytest.mark.parametrize("number", CUTS)
def test_every_cut_gives_sentence_transformers_vectors(stack: Stack, answers: Any, number: int) -> None:
    stack.cut(number)
    with stack.client as client:
        made = client.embeddings.create(model=MODEL, input=answers["texts"], extra_body={"truncate_prompt_tokens": -1})
        as_numbers = client.embeddings.create(
            model=MODEL, input=answers["texts"], encoding_format="float", extra_body={"truncate_prompt_tokens": -1}
        )
    vectors = [entry.embedding for entry in made.data]
    cosine, difference = compared(vectors, answers["embeddings"])
    sys.stdout.write(f"{number} segments: cosine at least {cosine:.9f}, difference at most {difference:.2e}\n")
    assert cosine >= LEAST_COSINE
    assert difference <= MOST_DIFFERENCE
    assert [entry.index for entry in made.data] == list(range(len(answers["texts"])))
    np.testing.assert_allclose([entry.embedding for entry in as_numbers.data], vectors, atol=1e-7)
    assert made.usage.prompt_tokens == made.usage.total_tokens == answers["tokens"]


def test_token_ids_give_what_the_text_gives(stack: Stack, answers: Any) -> None:
    tokenizer = Tokenizer.from_file(f"{os.environ['SI_TEST_ENCODER_PATH']}/tokenizer.json")
    tokenizer.no_padding()
    ids = [tokenizer.encode(text).ids for text in answers["texts"][:3]]
    with stack.client as client:
        made = client.embeddings.create(model=MODEL, input=ids)
        alone = client.embeddings.create(model=MODEL, input=ids[1])
    _, difference = compared([entry.embedding for entry in made.data], answers["embeddings"][:3])
    assert difference <= MOST_DIFFERENCE
    _, difference = compared([alone.data[0].embedding], answers["embeddings"][1:2])
    assert difference <= MOST_DIFFERENCE


def test_kserve_gives_the_same_vectors_over_http_and_grpc(stack: Stack, answers: Any) -> None:
    tokenizer = Tokenizer.from_file(f"{os.environ['SI_TEST_ENCODER_PATH']}/tokenizer.json")
    tokenizer.enable_padding()
    read = tokenizer.encode_batch(answers["texts"][:4])
    given = {"input_ids": [one.ids for one in read], "attention_mask": [one.attention_mask for one in read]}
    clients: tuple[tuple[Any, Any], ...] = (
        (triton_http, triton_http.InferenceServerClient(f"127.0.0.1:{stack.http}", network_timeout=300)),
        (triton_grpc, triton_grpc.InferenceServerClient(f"127.0.0.1:{stack.grpc}")),
    )
    for kind, client in clients:
        inputs = []
        for name, rows in given.items():
            inputs.append(kind.InferInput(name, [len(rows), len(rows[0])], "INT64"))
            inputs[-1].set_data_from_numpy(np.array(rows, dtype=np.int64))
        with client:
            metadata = client.get_model_metadata(MODEL, **({"as_json": True} if kind is triton_grpc else {}))
            assert "sentence_embedding" in {tensor["name"] for tensor in metadata["outputs"]}
            alone = client.infer(MODEL, inputs, outputs=[kind.InferRequestedOutput("sentence_embedding")])
            every = client.infer(MODEL, inputs)
        assert alone.as_numpy("last_hidden_state") is None
        for answer in (alone, every):
            _, difference = compared(answer.as_numpy("sentence_embedding"), answers["embeddings"][:4])
            assert difference <= MOST_DIFFERENCE
        hidden, mask = every.as_numpy("last_hidden_state"), np.array(given["attention_mask"])[:, :, None]
        mean = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        _, difference = compared(mean / np.linalg.norm(mean, axis=1, keepdims=True), answers["embeddings"][:4])
        assert difference <= MOST_DIFFERENCE


def test_texts_are_ranked_by_the_cosine_of_their_embeddings(stack: Stack, answers: Any) -> None:
    texts, vectors = answers["texts"][:4], np.array(answers["embeddings"][:4])
    with stack.client as client:
        told = client.post("/rerank", body={"model": MODEL, "query": texts[0], "documents": texts[1:]}, cast_to=object)
    wanted = vectors[1:] @ vectors[0]
    results: Any = told["results"]  # type: ignore[index]
    assert [result["index"] for result in results] == sorted(range(3), key=lambda index: -wanted[index])
    assert all(math.isclose(result["relevance_score"], wanted[result["index"]], abs_tol=1e-5) for result in results)


def test_a_text_that_is_too_long_is_a_400(stack: Stack) -> None:
    with stack.client as client, pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens"):
        client.embeddings.create(model=MODEL, input="word " * 600)
