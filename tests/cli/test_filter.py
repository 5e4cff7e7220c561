"""`splitinference filter`: a filter is fitted, its threshold keeps the stated accuracy, and data that cannot do is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitinference.cli.filter import reuse, train
from splitinference.cli.filter.labelled import Labelled, read_labelled
from splitinference.cli.main import main
from splitinference_gateway.answers.nearby import Nearby
from splitinference_protocol.input_filter import InputFilter, Of, ReuseFilter, read_filter


def ring(rows: int, seed: int) -> tuple[Any, Any]:
    """Points in a plane, useless (class 0) inside a ring with a blurred edge: no straight line tells them apart."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    inside = np.hypot(*x.T) + random.normal(0, 0.1, rows) < 1.2
    return x, np.where(inside, 0, 1)


def skipping(file: Path) -> InputFilter:
    made = read_filter(file.read_text())
    assert isinstance(made, InputFilter)
    return made


def write(file: Path, **arrays: Any) -> str:
    np.savez(file, **arrays)
    return str(file)


def test_a_trained_filter_keeps_its_accuracy_on_other_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = ring(3000, 1)
    data, output = write(tmp_path / "a.npz", x=x, y=y), tmp_path / "filter.json"
    assert main(["filter", "train", "--data", data, "--class", "0", "--accuracy", "0.95", "-o", str(output), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    x, y = ring(3000, 2)
    assert main(["filter", "eval", "--data", write(tmp_path / "b.npz", x=x, y=y), "--filter", str(output), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    for found in (told, other):
        assert found["accuracy"] >= 0.93
        assert found["recall"] >= 0.85
        assert found["passRate"] < 0.7
        assert found["area"] > 0.95
        assert math.isclose(found["filterability"], (1 - found["passRate"]) / found["useless"])
    assert other["passRate"] == pytest.approx(np.mean([not skipping(output).skips(row) for row in x]))
    assert main(["filter", "eval", "--data", data, "--filter", str(output)]) == 0
    assert "accuracy wanted" in capsys.readouterr().out


def texts(rows: int, seed: int) -> tuple[Any, Any, Any]:
    """IDs, mask and classes: a text is useful (class 1) if it has one of the tokens 3, 17 and 40, and not 5."""
    random = np.random.default_rng(seed)
    ids = random.integers(1, 60, (rows, 12))
    lengths = random.integers(3, 13, rows)
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    kept = np.where(mask == 1, ids, 0)
    useful = np.isin(kept, (3, 17, 40)).any(axis=1) & ~(kept == 5).any(axis=1)
    return ids, mask, useful.astype(np.int64)


def test_the_gateways_arithmetic_is_that_of_the_training() -> None:
    x, y = ring(500, 3)
    ids, mask, said = texts(300, 3)
    tokens = [row[kept == 1] for row, kept in zip(ids, mask, strict=True)]
    for data in (Labelled(Of.VALUES, x.astype(np.float32), np.eye(2)[y]), Labelled(Of.TOKENS, tokens, np.eye(2)[said])):
        for hidden in (0, 5):
            made = train.skipping(data, 0, hidden, 0)
            assert np.allclose(train.probabilities(made, data), [made.probability(row.tolist()) for row in data.x])


def test_a_filter_of_texts_is_trained_by_their_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids, mask, y = texts(4000, 8)
    data, output = write(tmp_path / "a.npz", input_ids=ids, attention_mask=mask, y=y), tmp_path / "filter.json"
    assert main(["filter", "train", "--data", data, "--class", "0", "-o", str(output), "--hidden", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    made = skipping(output)
    assert (made.features.of, made.features.inputs) == (Of.TOKENS, 60)
    ids, mask, y = texts(2000, 9)
    assert (
        main(
            [
                "filter",
                "eval",
                "--data",
                write(tmp_path / "b.npz", input_ids=ids, attention_mask=mask, y=y),
                "--filter",
                str(output),
                "--json",
            ]
        )
        == 0
    )
    other = json.loads(capsys.readouterr().out)
    for found in (told, other):
        assert found["accuracy"] >= 0.93
        assert found["passRate"] < 0.7
    passed = [not made.skips(row[kept == 1].tolist()) for row, kept in zip(ids, mask, strict=True)]
    assert other["passRate"] == pytest.approx(np.mean(passed))


def test_a_filter_over_layers_says_how_many(tmp_path: Path) -> None:
    x, y = ring(3000, 1)
    output = tmp_path / "filter.json"
    data = write(tmp_path / "a.npz", features=x, layers=4, y=y)
    assert main(["filter", "train", "--data", data, "--class", "0", "-o", str(output)]) == 0
    assert (skipping(output).features.of, skipping(output).features.layers) == (Of.LAYERS, 4)


def stream(rows: int, seed: int) -> tuple[Any, Any]:
    """Frames of scenes that last for a while: the class is the scene's, and each frame is a little different."""
    random = np.random.default_rng(seed)
    scenes = random.normal(size=(rows // 20, 4))
    x = np.repeat(scenes, 20, axis=0) + random.normal(0, 0.03, (rows, 4))
    return x.astype(np.float32), (np.repeat(scenes, 20, axis=0)[:, :2].argmax(axis=1)).astype(np.int64)


def test_mode_reuse_is_trained_on_rows_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = stream(3000, 1)
    data, output = write(tmp_path / "a.npz", x=x, y=y), tmp_path / "filter.json"
    assert main(["filter", "train", "--mode", "Reuse", "--data", data, "-o", str(output), "--entries", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["accuracy"] >= 0.93, told["passRate"] < 0.5) == (True, True)
    made = read_filter(output.read_text())
    assert isinstance(made, ReuseFilter)
    x, y = stream(1000, 2)
    assert main(["filter", "eval", "--data", write(tmp_path / "b.npz", x=x, y=y), "--filter", str(output), "--json"]) == 0
    other = json.loads(capsys.readouterr().out)
    nearby, ran, right = Nearby(made, 1e9, lambda: 0.0), 0, 0
    for row, said in zip(x.tolist(), y.tolist(), strict=True):
        units = made.features.units(row)
        answer = nearby.answer("", units)
        if answer is None:
            nearby.keep("", units, bytes([said]))
        ran, right = ran + (answer is None), right + (answer in (None, bytes([said])))
    assert (other["passRate"], other["accuracy"]) == pytest.approx((ran / 1000, right / 1000)), "as the gateway does it"
    assert main(["filter", "eval", "--data", str(tmp_path / "b.npz"), "--filter", str(output)]) == 0
    assert "in the order of the file" in capsys.readouterr().out


def test_the_distance_is_the_largest_of_those_that_keep_the_accuracy(tmp_path: Path) -> None:
    x, y = stream(1500, 3)
    data = read_labelled(Path(write(tmp_path / "a.npz", x=x, y=y)))
    made = reuse.reusing(data, 8, 50, 0)
    loose, strict = (reuse.distance_for(made, accuracy, data) for accuracy in (0.8, 0.97))
    assert loose is not None
    assert strict is not None
    assert loose.threshold >= strict.threshold
    assert loose.pass_rate <= strict.pass_rate
    assert strict.least_accuracy >= 0.97


def test_the_threshold_is_the_one_that_skips_most() -> None:
    """Against all thresholds, one by one."""
    random = np.random.default_rng(4)
    useless = random.random(400) < 0.6
    found = np.clip(np.where(useless, 0.7, 0.3) + random.normal(0, 0.2, 400), 0, 1)
    for accuracy in (0.8, 0.9, 0.95):
        point = train.threshold_for(accuracy, 0.5, found, useless)
        assert point is not None
        rates = [
            p.pass_rate for p in (train.at(t, found, useless) for t in found) if p.least_accuracy >= accuracy and p.least_recall >= 0.5
        ]
        assert point.pass_rate == min(rates)
        assert point.least_accuracy >= accuracy
        assert point.accuracy > point.least_accuracy
    assert train.threshold_for(0.9999, 0.5, found, useless) is None


def test_skipping_everything_is_no_filter_although_most_rows_are_useless() -> None:
    random = np.random.default_rng(7)
    useless = random.random(1000) < 0.95
    found = np.where(useless, random.uniform(0.4, 1, 1000), random.uniform(0, 0.6, 1000))
    careless, careful = (train.threshold_for(0.9, recall, found, useless) for recall in (0.0, 0.8))
    assert careless is not None
    assert careful is not None
    assert careless.recall < 0.1
    assert careful.least_recall >= 0.8


def test_the_area_counts_pairs() -> None:
    found, useless = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True])
    assert train.area(found, useless) == (2 + 1.5) / 4


def test_no_filter_is_written_where_none_keeps_the_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(5)
    data = write(tmp_path / "noise.npz", x=random.normal(size=(400, 2)), y=random.integers(0, 2, 400))
    output = tmp_path / "filter.json"
    assert main(["filter", "train", "--data", data, "--class", "0", "--accuracy", "0.99", "-o", str(output)]) == 1
    assert "No threshold keeps an accuracy of 0.99" in capsys.readouterr().out
    assert not output.exists()


X, Y = ring(400, 6)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X, "y": np.zeros(400, int)}, "a filter needs both classes"),
        ({"x": X, "y": np.ones(400, int)}, "a filter needs both classes"),
        ({"x": X[:100], "y": Y[:100]}, "200 in all are needed"),
        ({"x": X}, "one of x, input_ids and features is needed, and outputs or y"),
        ({"y": Y}, "one of x, input_ids and features is needed, and outputs or y"),
        ({"x": X, "features": X, "y": Y}, "one of x, input_ids and features is needed"),
        ({"features": X, "y": Y}, "layers must be one whole number from 1"),
        ({"features": X, "layers": 0, "y": Y}, "layers must be one whole number from 1"),
        ({"input_ids": X, "y": Y}, "input_ids must be whole numbers from 0"),
        ({"input_ids": np.full((400, 2), -1), "y": Y}, "input_ids must be whole numbers from 0"),
        ({"input_ids": np.ones((400, 2), int), "attention_mask": np.zeros((400, 2), int), "y": Y}, "at least one token in each row"),
        ({"input_ids": np.ones((400, 2), int), "attention_mask": np.ones((400, 3), int), "y": Y}, "attention_mask must be of shape"),
        ({"x": X, "y": Y[:-1]}, "y must be 400 whole numbers"),
        ({"x": X, "y": Y - 1}, "y must be 400 whole numbers"),
        ({"x": X, "y": Y + 0.5}, "y must be 400 whole numbers"),
        ({"x": X[:, 0], "y": Y}, "x must be finite numbers of shape"),
        ({"x": np.where(X > 2, np.nan, X), "y": Y}, "x must be finite numbers of shape"),
        ({"x": X.astype(str), "y": Y}, "x must be finite numbers of shape"),
        ({"x": X, "outputs": np.ones((400, 1))}, "outputs must be finite numbers"),
        ({"x": X, "outputs": np.full((400, 2), np.inf)}, "outputs must be finite numbers"),
        ({"x": np.array([{}] * 400, dtype=object), "y": Y}, "cannot be read"),
    ],
)
def test_data_that_cannot_do_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], arrays: dict[str, Any], said: str) -> None:
    assert main(["filter", "train", "--data", write(tmp_path / "a.npz", **arrays), "--class", "0"]) != 0
    assert said in capsys.readouterr().err


def test_wrong_arguments_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "a.npz", x=X, y=Y)
    (tmp_path / "none.json").write_text("{}")
    same = write(tmp_path / "same.npz", x=X, y=np.zeros(400, int))
    layers = write(tmp_path / "layers.npz", features=X, layers=3, y=Y)
    straight = tmp_path / "straight.json"
    assert (
        main(
            [
                "filter",
                "train",
                "--data",
                data,
                "--class",
                "0",
                "--hidden",
                "0",
                "--accuracy",
                "0.3",
                "--recall",
                "0.1",
                "-o",
                str(straight),
            ]
        )
        == 0
    )
    for words, said in (
        (["train", "--data", data, "--class", "2"], "class 2 does not exist"),
        (["train", "--data", data, "--class", "0", "--accuracy", "1"], "--accuracy must be between 0 and 1"),
        (["train", "--data", data, "--class", "0", "--recall", "0"], "--recall must be between 0 and 1"),
        (["train", "--data", data, "--class", "0", "--hidden", "999"], "--hidden must be 0 to 256"),
        (["train", "--data", str(tmp_path / "missing.npz"), "--class", "0"], "cannot be read"),
        (["train", "--data", data], "--mode Skip needs --class"),
        (["train", "--data", data, "--class", "0", "--entries", "5"], "--entries has no meaning with --mode Skip"),
        (["train", "--mode", "Reuse", "--data", data, "--class", "0"], "--class has no meaning with --mode Reuse"),
        (["train", "--mode", "Reuse", "--data", data, "--entries", "0"], "--entries must be 1 to 4096"),
        (["train", "--mode", "Reuse", "--data", same], "reuse needs two classes at least"),
        (["train", "--mode", "Reuse", "--data", layers], "has nothing of the layers"),
        (["eval", "--data", layers, "--filter", str(straight)], "the filter is over values, "),
        (["eval", "--data", data, "--filter", str(tmp_path / "none.json")], "form 1 and mode Skip or Reuse are expected"),
        (["collect", "--url", "ftp://x", "--model", "m", "--data", data], "--url must begin with http"),
        (["collect", "--url", "http://127.0.0.1:9", "--model", "m", "--data", data], "cannot be asked"),
        (["collect", "--url", "http://127.0.0.1:9", "--model", "m", "--data", layers], "must have either x or input_ids"),
    ):
        assert main(["filter", *words]) != 0
        assert said in capsys.readouterr().err
