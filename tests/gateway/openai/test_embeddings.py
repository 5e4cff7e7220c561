"""Embeddings, scores and ranks: bodies as clients send them, answers as clients read them, and what is refused before anything runs."""

import array
import base64
import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest

from splitinference_gateway.tokens.sentence import Sentence
from tests.gateway.model_folder import BEGIN, BERT, CLASSIFIER, END, MEAN, write_encoder
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_embedding, toy_segments

pytestmark = pytest.mark.anyio


def tokens(text: str) -> list[int]:
    return [BEGIN, *text.encode(), END]


def near(made: Any, wanted: Any) -> bool:
    return len(made) == len(wanted) and all(math.isclose(one, other, abs_tol=1e-6) for one, other in zip(made, wanted, strict=True))


async def test_texts_and_token_ids_become_vectors_in_both_encodings(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    async with serving(tmp_path, folder, await toy_segments("a", "b")) as world:
        async with world.client as client:
            for encoding in ("float", "base64", openai.NOT_GIVEN):
                made = await client.embeddings.create(model=MODEL, input=["hi", "há", "a longer text"], encoding_format=encoding)
                if encoding == "base64":
                    vectors = [array.array("f", base64.b64decode(str(entry.embedding))).tolist() for entry in made.data]
                else:
                    vectors = [entry.embedding for entry in made.data]
                assert all(near(made, toy_embedding(tokens(t))) for made, t in zip(vectors, ["hi", "há", "a longer text"], strict=True))
                assert (made.usage.prompt_tokens, made.usage.total_tokens) == (4 + 5 + 15, 24)
            one = await client.embeddings.create(model=MODEL, input="hi")
            ids = await client.embeddings.create(model=MODEL, input=[tokens("hi"), [1, 2]])
        assert near(one.data[0].embedding, toy_embedding(tokens("hi")))
        assert near(ids.data[1].embedding, toy_embedding([1, 2]))
        assert world.segments[1].poolings[0] == {"modes": ["mean"], "normalize": True}
        assert await world.metric('splitinference_gateway_requests_total{code="200"}') == 5


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"input": []}, 400, "at least one text"),
        ({"input": [[]]}, 400, "at least one token"),
        ({"input": ["a"] * 3000}, 400, "3000 inputs are too many"),
        ({"input": ["a", 1]}, 400, "all of one kind"),
        ({"input": [258]}, 400, "token id 258 is not in"),
        ({"input": [-1]}, 400, "token id -1 is not in"),
        ({"input": {"text": "a"}}, 400, "a text, token ids, or a list"),
        ({}, 400, "Missing required parameter: 'input'"),
        ({"input": "a", "dimensions": 3}, 400, "embeddings of this model have 2 or 4 numbers"),
        ({"input": "a", "dimensions": 0}, 400, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ({"input": "a", "model": "other"}, 404, "does not exist"),
        ({"input": "a" * 63}, 400, "maximum context length is 64 tokens"),
        ({"input": "a" * 100_000}, 400, "maximum context length is 64 tokens"),
        ({"input": list(range(65))}, 400, "maximum context length is 64 tokens"),
        ({"input": "a", "truncate_prompt_tokens": 65}, 400, "-1, or 3 to 64"),
        ({"input": "a", "truncate_prompt_tokens": 2}, 400, "-1, or 3 to 64"),
        ({"input": "a", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens"),
        ({"input": "a", "normalize": False}, 400, "normalize"),
        ({"input": "\ud800"}, 400, "not Unicode"),
        ({"input": [[1] * 64] * 2048, "encoding_format": "base64"}, 200, "base64 is short enough"),
        ({"input": "a\0b"}, 200, "a zero byte is a character"),
    ],
)
async def test_what_is_wrong_is_said_before_anything_runs(tmp_path: Path, body: dict[str, Any], status: int, said: str) -> None:
    folder = write_encoder(tmp_path / "model", {**BERT, "matryoshka_dimensions": [2]})
    async with serving(tmp_path, folder, await toy_segments("a"), max_context_tokens=64, prefill_chunk_tokens=4096) as world:
        found, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, **body})
        assert found == status, answer
        if status != 200:
            assert said in answer["error"]["message"]
            assert world.segments[0].counts["infer"] == 0


async def test_shorter_vectors_have_length_one_again(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", {**BERT, "matryoshka_dimensions": [2]})
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        whole = toy_embedding(tokens("hi"))
        length = math.hypot(*whole[:2])
        for size, wanted in ((4, whole), (2, [value / length for value in whole[:2]])):
            status, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "hi", "dimensions": size})
            assert status == 200
            assert near(answer["data"][0]["embedding"], wanted)


async def test_a_long_text_is_cut_where_the_client_asks_and_keeps_its_special_tokens(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", files={"sentence_bert_config.json": {"max_seq_length": 8, "do_lower_case": True}})
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        for cut, text in ((-1, "abcdef"), (5, "abc")):
            body = {"model": MODEL, "input": ["ABCDEFGHIJ" * 100], "truncate_prompt_tokens": cut}
            _, answer, _ = await world.post("/v1/embeddings", body)
            assert near(answer["data"][0]["embedding"], toy_embedding(tokens(text)))
        status, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "a" * 7})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


async def test_unknown_fields_are_named_or_refused(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    for setting, status in (("warn", 200), ("refuse", 400)):
        async with serving(tmp_path, folder, await toy_segments("a"), unknown_fields=setting) as world:
            found, _, headers = await world.post("/v1/embeddings", {"model": MODEL, "input": "a", "user": "x", "new_field": 1})
            assert found == status
            assert ("new_field" in headers.get("Warning", "")) == (status == 200)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (BERT, {"pooling": None}, "its folder has no modules.json"),
        (BERT, {"modules": ("Transformer", "Pooling", "Dense")}, "lists Transformer, Pooling, Dense"),
        (BERT, {"pooling": {"pooling_mode": "attention"}}, "pooling mode 'attention'"),
        (BERT, {"files": {"modules.json": "["}}, "modules.json is not JSON"),
        (BERT, {"files": {"modules.json": "{}"}}, "modules.json is not a list"),
        (BERT, {"files": {"1_Pooling/config.json": "[]"}}, "config.json is not a JSON object"),
        (
            BERT,
            {"files": {"modules.json": [{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "../../etc"}]}},
            "is no folder of the model",
        ),
        (BERT, {"files": {"config_sentence_transformers.json": {"default_prompt_name": "q", "prompts": {}}}}, "default prompt 'q'"),
    ],
)
async def test_an_encoder_that_gives_no_vectors_of_texts_says_why(
    tmp_path: Path, config: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    folder = write_encoder(tmp_path / "model", config, **options)
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        status, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "a"})
        assert (status, answer["error"]["code"]) == (400, "unsupported_model")
        assert said in answer["error"]["message"]
        body = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}]}
        status, _, _ = await world.post(f"/v2/models/{MODEL}/infer", body)
        assert status == 200


async def test_a_decoder_asked_for_vectors_and_an_encoder_asked_for_text_say_so(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a")) as world:
        for path in ("/v1/embeddings", "/v1/score", "/v1/rerank", "/rerank"):
            status, answer, _ = await world.post(path, {"model": MODEL, "input": "a"})
            assert status == 400
            assert "generates text" in answer["error"]["message"]
    async with serving(tmp_path, write_encoder(tmp_path / "model"), await toy_segments("a")) as world:
        status, answer, _ = await world.post("/v1/completions", {"model": MODEL, "prompt": "a"})
        assert status == 400
        assert "ask it at /v1/embeddings" in answer["error"]["message"]
        status, answer, _ = await world.post("/tokenize", {"prompt": "hi"})
        assert (status, answer["tokens"]) == (200, tokens("hi"))


async def test_nobody_without_a_key_learns_what_the_model_is(tmp_path: Path, model_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-one\n")
    async with serving(tmp_path, model_path, await toy_segments("a"), api_keys_file=keys) as world:
        for path in ("/v1/embeddings", "/v1/score", "/v1/rerank", "/v1/responses"):
            status, answer, _ = await world.post(path, {"model": MODEL, "input": "a"})
            assert status == 401, answer
        async with world.http.get(f"{world.url}/v1/responses/resp_1") as response:
            assert response.status == 401
    async with serving(tmp_path, write_encoder(tmp_path / "model"), await toy_segments("a"), api_keys_file=keys) as world:
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/responses", "/tokenize", "/detokenize"):
            status, answer, _ = await world.post(path, {"model": MODEL, "prompt": "a"})
            assert status == 401, (path, answer)


async def test_without_a_tokenizer_an_encoder_still_serves_tensors(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        status, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "a"})
        assert (status, "no tokenizer.json" in answer["error"]["message"]) == (400, True)
        outputs = [{"name": "sentence_embedding"}]
        body = {"inputs": [{"name": "input_ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}], "outputs": outputs}
        status, answer, _ = await world.post(f"/v2/models/{MODEL}/infer", body)
        assert status == 200
        assert near(answer["outputs"][0]["data"], toy_embedding([1, 2]))


async def test_a_classifier_scores_and_ranks_pairs(tmp_path: Path) -> None:
    for activation in ("Identity", "Sigmoid"):
        config = {**CLASSIFIER, "sentence_transformers": {"activation_fn": f"torch.nn.modules.x.{activation}"}}
        folder = write_encoder(tmp_path / f"model-{activation}", config, pooling=None)
        async with serving(tmp_path, folder, await toy_segments("a", "b")) as world:
            sums = [(sum(tokens("q")) + sum([*text.encode(), END])) / 1000 for text in ("b", "zzz")]
            wanted = [1 / (1 + math.exp(-value)) if activation == "Sigmoid" else value for value in sums]
            status, answer, _ = await world.post("/v1/score", {"model": MODEL, "text_1": "q", "text_2": ["b", "zzz"]})
            assert status == 200, answer
            assert near([entry["score"] for entry in answer["data"]], wanted)
            assert world.segments[0].shapes[0][0] == 2, "token types tell the texts apart"
            body = {"model": MODEL, "query": "q", "documents": ["b", {"text": "zzz"}], "top_n": 1}
            status, answer, _ = await world.post("/v1/rerank", body)
            assert status == 200, answer
            assert [(entry["index"], entry["document"]) for entry in answer["results"]] == [(1, {"text": "zzz"})]
            status, answer, _ = await world.post("/v1/score", {"model": MODEL, "text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
            assert (status, answer["error"]["param"]) == (400, "text_2")


async def test_an_embedding_model_scores_by_the_cosine(tmp_path: Path) -> None:
    async with serving(tmp_path, write_encoder(tmp_path / "model"), await toy_segments("a")) as world:
        for first in ("q", ["q", "r"]):
            names = ["q", "q"] if first == "q" else ["q", "r"]
            wanted = [sum(map(float.__mul__, *map(toy_embedding, map(tokens, pair)))) for pair in zip(names, ["x", "yy"], strict=True)]
            status, answer, _ = await world.post("/v1/score", {"model": MODEL, "queries": first, "documents": ["x", "yy"]})
            assert status == 200, answer
            assert near([entry["score"] for entry in answer["data"]], wanted)


async def test_a_classifier_of_several_classes_scores_no_pairs(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model", {**CLASSIFIER, "num_labels": 3}, pooling=None)
    async with serving(tmp_path, folder, await toy_segments("a")) as world:
        status, answer, _ = await world.post("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b"]})
        assert (status, "it tells 3 classes apart" in answer["error"]["message"]) == (400, True)


async def test_a_segment_that_does_not_know_pooling_is_an_error_and_no_wrong_vector(tmp_path: Path) -> None:
    segments = await toy_segments("a")
    segments[0].forgets_pooling = True
    async with serving(tmp_path, write_encoder(tmp_path / "model"), segments, replay_seconds=0.5) as world:
        status, answer, _ = await world.post("/v1/embeddings", {"model": MODEL, "input": "a"})
        assert (status, "sentence_embedding" in json.dumps(answer)) == (503, True)


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        (MEAN, ("mean",)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": True}, ("cls", "max")),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "weightedmean"]}, ("mean", "weightedmean")),
        ({}, ("mean",)),
    ],
)
def test_pooling_is_read_in_its_former_and_its_present_form(tmp_path: Path, pooling: dict[str, Any], modes: tuple[str, ...]) -> None:
    read = Sentence.read(write_encoder(tmp_path / "model", pooling=pooling, modules=("Transformer", "Pooling")))
    assert read.pooling is not None
    assert (read.pooling.modes, read.pooling.normalize) == (modes, False)
