"""`splitinference filter`: a filter is fitted, its threshold keeps the stated accuracy, and data that cannot do is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitinference.cli.filter import train
from splitinference.cli.filter.labelled import Labelled
from splitinference.cli.main import main
from splitinference_protocol.input_filter import read_filter


def ring(rows: int, seed: int) -> tuple[Any, Any]:
    """Points in a plane, useless (class 0) inside a ring with a blurred edge: no straight line tells them apart."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 2))
    inside = np.hypot(*x.T) + random.normal(0, 0.1, rows) < 1.2
    return x, np.where(inside, 0, 1)


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
    assert other["passRate"] == pytest.approx(np.mean([not read_filter(output.read_text()).skips(row) for row in x]))
    assert main(["filter", "eval", "--data", data, "--filter", str(output)]) == 0
    assert "accuracy wanted" in capsys.readouterr().out


def test_the_gateways_arithmetic_is_that_of_the_training() -> None:
    x, y = ring(500, 3)
    data = Labelled(x.astype(np.float32), y == 0, np.array([1.0, 0.0]))
    for hidden in (0, 5):
        made = train.fitted(data, 0, hidden, 0)
        assert np.allclose(train.probabilities(made, data.x), [made.probability(row) for row in data.x.tolist()])


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
        ({"x": X}, "x is needed, and outputs or y"),
        ({"y": Y}, "x is needed, and outputs or y"),
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
    for words, said in (
        (["train", "--data", data, "--class", "2"], "class 2 does not exist"),
        (["train", "--data", data, "--class", "0", "--accuracy", "1"], "--accuracy must be between 0 and 1"),
        (["train", "--data", data, "--class", "0", "--recall", "0"], "--recall must be between 0 and 1"),
        (["train", "--data", data, "--class", "0", "--hidden", "999"], "--hidden must be 0 to 256"),
        (["train", "--data", str(tmp_path / "missing.npz"), "--class", "0"], "cannot be read"),
        (["eval", "--data", data, "--filter", str(tmp_path / "none.json")], "form 1 and mode Skip are expected"),
    ):
        assert main(["filter", *words]) != 0
        assert said in capsys.readouterr().err
