"""A filter before a generic chain: which rows run, what clients get, and what happens when the model stops agreeing."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.answers.filtering import LEAST, WINDOW
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
async def filtered(folder: Path, given: Any = None, chain: Any = None, **settings: Any) -> AsyncIterator[Serving]:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(chain or CHAIN))
    (model / "filter.json").write_text(json.dumps(given or FILTER))
    async with serving(folder, model, await toy_segments("a", "b"), filter_file="filter.json", **settings) as world:
        yield world


async def infer(world: Serving, *rows: list[float]) -> list[list[float]]:
    given = {"name": "x", "datatype": "FP32", "shape": [len(rows), 3], "data": [value for row in rows for value in row]}
    status, told, _ = await world.post(f"/v2/models/{MODEL}/infer", {"inputs": [given]})
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


@pytest.mark.parametrize(
    ("given", "chain", "said"),
    [
        ({**FILTER, "answer": [1.0]}, CHAIN, "needs both classes"),
        ({**FILTER, "mean": [0.0], "scale": [1.0], "weight": [1.0]}, CHAIN, "takes 1 values a row, the model 3"),
        ({**FILTER, "answer": [7.0, 1.0]}, CHAIN, "answer has 2 values, the model's output 3"),
        (FILTER, {"model_type": "bert", "hidden_size": 4}, "for generic chains"),
        (FILTER, {"model_type": "llama", "vocab_size": 4}, "for generic chains"),
    ],
)
async def test_a_filter_that_does_not_belong_here_is_refused_at_the_start(tmp_path: Path, given: Any, chain: Any, said: str) -> None:
    from splitinference_gateway.answers.filtering import filtering
    from splitinference_gateway.metrics import Metrics
    from splitinference_gateway.tensor_io.signature import Signature

    (tmp_path / "config.json").write_text(json.dumps(chain))
    (tmp_path / "filter.json").write_text(json.dumps(given))
    with pytest.raises(ModelFilesError, match=said):
        filtering("filter.json", tmp_path, Signature.read(tmp_path), Metrics(), lambda: None)
    with pytest.raises(ModelFilesError, match=r"missing\.json"):
        filtering("missing.json", tmp_path, Signature.read(tmp_path), Metrics(), lambda: None)
