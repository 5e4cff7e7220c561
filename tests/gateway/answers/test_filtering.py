"""A filter before a generic chain: which rows run, what clients get, and what happens when the model stops agreeing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitinference.cli.main import main
from splitinference_gateway.answers.filtering import LEAST, RATE_SECONDS, WINDOW, read
from splitinference_gateway.answers.nearby import MOST_OWNERS, Nearby
from splitinference_gateway.tensor_io.signature import Signature
from splitinference_gateway.tokens.tokenizer import ModelFilesError
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio
CHAIN = {"model_type": "sequential", "input": {"name": "x", "shape": [3]}, "output": {"name": "scores", "shape": [3]}, "layers": []}
FILTER: dict[str, Any] = {
    "form": 1, "mode": "Skip", "mean": [0.0] * 3, "scale": [1.0] * 3, "hidden": [], "hiddenBias": [],
    "weight": [10.0, -10.0, 0.0], "bias": 0.0, "threshold": 0.99, "uselessClass": 0, "answer": [7.0, 1.0, 0.0],
}  # fmt: skip
USELESS, USEFUL, WRONG = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 5.0]
"""The toy chain multiplies by 4, so the class is the largest value. The filter skips the third one, too, which is a mistake."""


@asynccontextmanager
async def filtered(folder: Path, given: Any = None, chain: Any = None, classes: int = 1, **settings: Any) -> AsyncIterator[Serving]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(chain or CHAIN))
    (model / "filter.json").write_text(json.dumps(given or FILTER))
    segments = await toy_segments("a", "b")
    for segment in segments:
        segment.classes = classes
    async with serving(folder, model, segments, filter_file="filter.json", **settings) as world:
        yield world


async def infer(world: Serving, *rows: list[float], **headers: str) -> list[list[float]]:
    given = {"name": "x", "datatype": "FP32", "shape": [len(rows), 3], "data": [value for row in rows for value in row]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, told, _ = await world.post(f"/v2/models/{MODEL}/infer", {"inputs": [given]}, headers=named)
    assert status == 200, told
    (output,) = told["outputs"]
    assert (output["name"], output["shape"]) == ("scores", [len(rows), 3])
    return [output["data"][3 * row : 3 * row + 3] for row in range(len(rows))]


async def test_rows_of_the_useless_class_do_not_run(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1e-9) as world:
        assert await infer(world, USELESS) == [[7.0, 1.0, 0.0]]
        assert not world.segments[0].shapes, "no segment heard of it"
        assert await infer(world, USELESS, USEFUL, USELESS, [0.0, 0.0, 2.0]) == [[7, 1, 0], [0, 4, 0], [7, 1, 0], [0, 0, 8]]
        assert world.segments[0].shapes == [[2, 3]], "the useful rows, together"
        assert await infer(world, USEFUL) == [[0, 4, 0]]
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["rows"], report["skipped"], report["compared"], report["open"]) == (6, 3, 0, False)
        assert await world.metric('splitinference_gateway_filter_rows_total{result="skipped"}') == 3
        assert await world.metric('splitinference_gateway_filter_rows_total{result="passed"}') == 3


async def test_a_sampled_row_runs_and_the_client_gets_the_models_answer(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1.0) as world:
        assert await infer(world, USELESS, USEFUL) == [[4, 0, 0], [0, 4, 0]]
        assert await infer(world, WRONG) == [[4, 0, 20]]
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["rows"], report["skipped"], report["compared"], report["agreement"]) == (3, 0, 2, 0.5)
        assert await world.metric('splitinference_gateway_filter_compared_rows_total{agrees="no"}') == 1


async def test_below_the_floor_it_opens_and_every_row_runs(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1.0, filter_floor=0.9) as world:
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        await infer(world, *[WRONG] * (LEAST - 1))
        assert not filtering.open, "too few to conclude from"
        await infer(world, WRONG)
        assert filtering.open
        filtering.sample = 0.0
        before = len(world.segments[0].shapes)
        assert await infer(world, USELESS) == [[4, 0, 0]]
        assert len(world.segments[0].shapes) == before + 1
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["open"], report["agreement"], report["floor"]) == (True, 0.0, 0.9)
        assert await world.metric("splitinference_gateway_filter_open") == 1


async def test_agreement_is_that_of_late_and_enough_of_it_keeps_the_filter(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1.0, filter_floor=0.9) as world:
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        await infer(world, *[USELESS] * WINDOW)
        await infer(world, *[WRONG] * (WINDOW // 10))
        assert filtering.agreement == 0.9
        assert not filtering.open
        await infer(world, WRONG)
        assert filtering.open


async def test_a_filter_that_opened_takes_its_answers_along(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1e-9, reuse="all") as world:
        assert await infer(world, USELESS) == await infer(world, USELESS) == [[7, 1, 0]]
        assert len(world.gateway.reuse.memory) == 1
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        filtering.sample = 1.0
        await infer(world, *[WRONG] * LEAST)
        assert filtering.open
        assert await infer(world, USELESS) == [[4, 0, 0]]


async def test_a_model_whose_output_has_another_width_runs_as_without_a_filter(tmp_path: Path) -> None:
    chain = {**CHAIN, "output": {"name": "scores"}}
    wide = {**FILTER, "answer": [7.0, 1.0]}
    async with filtered(tmp_path, wide, chain, filter_sample=1e-9) as world:
        assert await infer(world, USELESS, USEFUL) == [[4, 0, 0], [0, 4, 0]]
        assert await infer(world, USELESS) == [[4, 0, 0]]


async def test_a_client_that_wants_the_models_answer_gets_it(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1e-9) as world:
        assert await infer(world, USELESS, Cache_Control="no-cache") == [[4, 0, 0]]
        assert await infer(world, USELESS) == [[7, 1, 0]]


async def test_the_pass_rate_is_that_of_late(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_sample=1e-9) as world:
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        now = 1000.0
        filtering.clock = lambda: now
        assert filtering.pass_rate is None
        await infer(world, USELESS, USEFUL)
        now += RATE_SECONDS / 2
        await infer(world, USEFUL, USEFUL)
        assert filtering.pass_rate == 0.75
        assert (await world.get("/internal/routes"))["filter"]["passRate"] == 0.75
        now += RATE_SECONDS / 2 + 1
        assert filtering.pass_rate == 1.0


async def test_the_model_is_asked_for_its_own_answers_and_the_filter_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = np.array([USELESS, USEFUL, WRONG, USEFUL], dtype=np.float32)
    np.savez(tmp_path / "inputs.npz", x=x, truth=np.array([0, 1, 2, 0]))
    given = ["--model", MODEL, "--data", str(tmp_path / "inputs.npz")]
    async with filtered(tmp_path, filter_sample=1e-9) as world:
        asked = ["filter", "collect", "--url", world.url, *given, "-o", str(tmp_path / "out.npz")]
        assert await asyncio.to_thread(main, asked) == 0
        with np.load(tmp_path / "out.npz") as found:
            assert np.array_equal(found["outputs"], 4 * x), "not the filter's answers"
            assert np.array_equal(found["x"], x)
        capsys.readouterr()
        asked = ["bench", "filter", "--url", world.url, *given, "--rounds", "2", "--batch", "3"]
        assert await asyncio.to_thread(main, [*asked, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["rows"], told["agreement"], told["accuracy"], told["accuracy_without"]) == (4, 0.75, 0.5, 0.75)
        assert told["ratio"] > 0
        assert told["hop_bytes"] is None
        assert await asyncio.to_thread(main, asked) == 0
        assert "right by truth" in capsys.readouterr().out
        wrong = [*asked[:3], world.url.replace("http", "ftp"), *asked[4:]]
        assert await asyncio.to_thread(main, wrong) != 0
        assert "--url must begin with" in capsys.readouterr().err
        for more, said in ((["--rounds", "0"], "--rounds must be 1"), (["--metrics", f"{world.url}/none"], "404")):
            assert await asyncio.to_thread(main, [*asked, *more]) != 0
            assert said in capsys.readouterr().err


BERT = {
    "model_type": "bert", "hidden_size": 4, "vocab_size": 10, "architectures": ["BertForSequenceClassification"], "num_labels": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
TOKENS: dict[str, Any] = {
    "form": 1, "mode": "Skip", "of": "tokens", "inputs": 10, "mean": [], "scale": [], "hidden": [], "hiddenBias": [],
    "weight": [0, 9, 9, -99, 0, 0, 0, 0, 0, 0], "bias": 0, "threshold": 0.99, "uselessClass": 0, "answer": [3.0, 0.0],
}  # fmt: skip


async def classify(world: Serving, *rows: list[int]) -> list[list[float]]:
    """Each row is padded with zeros to the longest."""
    width = max(map(len, rows))
    ids = [token for row in rows for token in [*row, *[0] * (width - len(row))]]
    mask = [int(place < len(row)) for row in rows for place in range(width)]
    shape = [len(rows), width]
    inputs = [
        {"name": "input_ids", "datatype": "INT64", "shape": shape, "data": ids},
        {"name": "attention_mask", "datatype": "INT64", "shape": shape, "data": mask},
    ]
    status, told, _ = await world.post(f"/v2/models/{MODEL}/infer", {"inputs": inputs})
    assert status == 200, told
    (output,) = told["outputs"]
    assert (output["name"], output["shape"]) == ("logits", [len(rows), 2])
    return [output["data"][2 * row : 2 * row + 2] for row in range(len(rows))]


async def test_texts_of_the_useless_class_do_not_run(tmp_path: Path) -> None:
    async with filtered(tmp_path, TOKENS, BERT, classes=2, filter_sample=1e-9) as world:
        assert await classify(world, [1, 2]) == [[3, 0]]
        assert not world.segments[0].shapes, "no segment heard of it"
        assert await classify(world, [1, 2], [1, 3, 1], [4, 4, 4], [2]) == [[3, 0], [0, 1], [1, 0], [3, 0]]
        assert world.segments[0].shapes == [[1, 2, 3]], "the two that pass are of equal length, and go together"
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["rows"], report["skipped"], report["mode"]) == (5, 3, "Skip")


async def test_sampled_texts_are_compared(tmp_path: Path) -> None:
    async with filtered(tmp_path, TOKENS, BERT, classes=2, filter_sample=1.0) as world:
        assert await classify(world, [1, 2], [1, 1]) == [[0, 1], [1, 0]], "of the first the model says something else"
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["compared"], report["agreement"], report["skipped"]) == (2, 0.5, 0)


NEAR: dict[str, Any] = {
    "form": 1, "mode": "Reuse", "mean": [0.0] * 3, "scale": [1.0] * 3, "hidden": [], "hiddenBias": [], "distance": 0.5, "entries": 2,
    "classes": 3,
}  # fmt: skip
REUSE: dict[str, Any] = {"given": NEAR, "filter_mode": "reuse", "filter_sample": 1e-9}


async def test_a_row_that_is_near_enough_gets_the_earlier_answer(tmp_path: Path) -> None:
    async with filtered(tmp_path, **REUSE) as world:
        assert await infer(world, [1.0, 0.0, 0.0]) == [[4, 0, 0]]
        assert await infer(world, [1.25, 0.0, 0.25], [0.0, 2.0, 0.0]) == [[4, 0, 0], [0, 8, 0]]
        assert world.segments[0].shapes == [[1, 3], [1, 3]]
        assert await infer(world, [1.75, 0.0, 0.0]) == [[7, 0, 0]], "the row in the middle was not kept, so this one is too far"
        assert await infer(world, [1.5, 0.0, 0.0]) == [[7, 0, 0]], "the nearest counts"
        assert await infer(world, [1.0, 0.0, 0.0]) == [[4, 0, 0]], "two rows are kept, and the first one is no longer among them"
        assert len(world.segments[0].shapes) == 4
        assert await infer(world, [1.0, 0.0, 0.0], Cache_Control="no-cache") == [[4, 0, 0]]
        assert len(world.segments[0].shapes) == 5
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["mode"], report["rows"], report["skipped"]) == ("Reuse", 7, 2)


async def test_an_earlier_answer_holds_for_a_time_and_for_its_model(tmp_path: Path) -> None:
    async with filtered(tmp_path, filter_seconds=10, **REUSE) as world:
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        assert filtering.nearby is not None
        now, model = 1000.0, "one"
        filtering.clock = filtering.nearby.clock = lambda: now
        filtering.model = lambda: model
        for later, told, runs in ((0, "one", 1), (9, "one", 1), (11, "one", 2), (12, "two", 3), (13, "two", 3)):
            now, model = 1000.0 + later, told
            await infer(world, USELESS)
            assert len(world.segments[0].shapes) == runs, later


async def test_a_client_gets_no_answers_to_rows_of_others(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-of-ann-0123456789\nsecret-of-bob-0123456789\n")
    for scope, runs in (("client", 2), ("all", 1)):
        async with filtered(tmp_path, filter_scope=scope, api_keys_file=keys, **REUSE) as world:
            for name in ("ann", "bob", "ann"):
                await infer(world, USEFUL, Authorization=f"Bearer secret-of-{name}-0123456789")
            assert len(world.segments[0].shapes) == runs, scope


async def test_where_reused_answers_are_wrong_the_filter_opens_and_forgets(tmp_path: Path) -> None:
    async with filtered(tmp_path, **{**REUSE, "given": {**NEAR, "entries": 1}, "filter_sample": 1.0}) as world:
        filtering = world.gateway.inference.filtering
        assert filtering is not None
        assert filtering.nearby is not None
        one, other = [0.25, 0.0, 0.0], [0.0, 0.25, 0.0]  # near each other, and of two classes
        await infer(world, one)
        for _ in range(LEAST // 2):
            await infer(world, other)
            await infer(world, one)
        assert filtering.open
        assert filtering.nearby.answer("", [0.0] * 3) is None
        filtering.sample = 0.0
        assert await infer(world, one, one) == [[1, 0, 0]] * 2


async def test_earlier_rows_of_few_owners_are_kept() -> None:
    from splitinference_protocol.input_filter import ReuseFilter, read_filter

    made = read_filter(json.dumps(NEAR))
    assert isinstance(made, ReuseFilter)
    nearby = Nearby(made, 10, lambda: 0.0)
    for owner in range(MOST_OWNERS + 1):
        nearby.keep(str(owner), [1.0, 2.0, 3.0], b"answer")
        nearby.answer("1", [0.0] * 3)
    assert nearby.answer("0", [1.0, 2.0, 3.0]) is None
    assert nearby.answer("1", [1.0, 2.0, 3.0]) == b"answer"
    for strange in (float("nan"), float("inf")):
        nearby.keep("1", [strange] * 3, b"strange")
        assert nearby.answer("1", [strange] * 3) is None


OF_LAYERS = {**FILTER, "of": "layers", "layers": 1, "mean": [0.0], "scale": [1.0], "weight": [1.0]}


async def test_a_filter_over_layers_is_asked_for_and_judged_here(tmp_path: Path) -> None:
    async with filtered(tmp_path, OF_LAYERS, filter_after_layers=1, filter_sample=0.5, filter_floor=0.9) as world:
        first = world.segments[0]
        first.sifts = {"skipped": 3, "compared": 2, "agreed": 2}
        await infer(world, *[USEFUL] * 5)
        assert first.filters == [{"file": "filter.json", "sample": 0.5}]
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["rows"], report["skipped"], report["compared"], report["agreement"]) == (5, 3, 2, 1.0)
        assert "passRate" not in report, "the first segment runs for each row"
        await infer(world, USEFUL, Cache_Control="no-cache")
        assert len(first.filters) == 1
        first.sifts = {"problem": "filter.json is over 9 layers"}
        await infer(world, USEFUL)
        assert (await world.get("/internal/routes"))["filter"]["problem"] == "filter.json is over 9 layers"
        first.sifts = {"skipped": 0, "compared": LEAST, "agreed": 0}
        await infer(world, USEFUL)
        report = (await world.get("/internal/routes"))["filter"]
        assert (report["open"], report["problem"]) == (True, "")
        asked = len(first.filters)
        await infer(world, USEFUL)
        assert len(first.filters) == asked, "it is open"


async def test_a_segment_that_knows_no_filters_is_reported(tmp_path: Path) -> None:
    async with filtered(tmp_path, OF_LAYERS, filter_after_layers=1) as world:
        assert await infer(world, USEFUL) == [[0, 4, 0]]
        assert "knows no filters" in (await world.get("/internal/routes"))["filter"]["problem"]


@pytest.mark.parametrize(
    ("given", "chain", "said"),
    [
        ({**FILTER, "answer": [1.0]}, CHAIN, "needs both classes"),
        ({**FILTER, "mean": [0.0], "scale": [1.0], "weight": [1.0]}, CHAIN, "takes 1 values a row, the model 3"),
        ({**FILTER, "answer": [7.0, 1.0]}, CHAIN, "answer has 2 values, the model's output 3"),
        ({**OF_LAYERS}, CHAIN, "over 1 layers, spec.filter.afterLayers is 0"),
        (NEAR, CHAIN, "of mode Reuse, spec.filter.mode is Skip"),
        (TOKENS, CHAIN, "over tokens, the model takes values"),
        (FILTER, {**BERT, "num_labels": 3}, "over values, the model takes tokens"),
        (TOKENS, {**BERT, "num_labels": 3}, "answer has 2 values, the model's output 3"),
        (TOKENS, {**BERT, "architectures": ["BertModel"]}, "needs an output of classes for each text; this model gives last_hidden_state"),
        (FILTER, {"model_type": "llama", "vocab_size": 4}, "for classifiers of texts and for generic chains"),
    ],
)
async def test_a_filter_that_does_not_belong_here_is_refused_at_the_start(tmp_path: Path, given: Any, chain: Any, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(chain))
    (tmp_path / "filter.json").write_text(json.dumps(given))
    with pytest.raises(ModelFilesError, match=said):
        read("filter.json", "skip", 0, tmp_path, Signature.read(tmp_path))
    with pytest.raises(ModelFilesError, match=r"missing\.json|for classifiers"):
        read("missing.json", "skip", 0, tmp_path, Signature.read(tmp_path))


async def test_a_filter_over_layers_needs_the_models_output_to_be_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**CHAIN, "output": {"name": "scores"}}))
    (tmp_path / "filter.json").write_text(json.dumps(OF_LAYERS))
    with pytest.raises(ModelFilesError, match=r"needs output\.shape"):
        read("filter.json", "skip", 1, tmp_path, Signature.read(tmp_path))
