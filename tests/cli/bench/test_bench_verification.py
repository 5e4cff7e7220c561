"""`bench verification` with an engine that is not there, or answers something else; the measuring: tests/segment/test_calibration.py."""

import json
from typing import Any

import pytest

from splitinference.cli.bench.segments.verification import sequences_until_found
from splitinference.cli.main import main
from tests.cli.bench.test_bench_privacy import an_engine

ROW = {"name": "stored weights, whole", "tokens": 10, "p50": 0.01, "p99": 0.02, "worst": 0.03, "largest_mean": 0.012, "refused": 0.0}


def a_report(refused: int = 0) -> dict[str, Any]:
    honest = {"tokens": 10, "worst": 0.03, "refused": refused, "limit_of_one_token": 0.048, "extrapolated_at_1e-6": 0.04}
    cheats = [{**ROW, "name": "a block is skipped", "refused": 1.0}, {**ROW, "name": "hardly", "refused": 0.0}]
    head = {"v": 1, "layers": "10:21", "dtype": "bfloat16", "sequences": 24, "tolerance": 0.016}
    return {**head, "honest": {**honest, "variations": [ROW]}, "cheats": cheats}


def test_a_reader_is_told_how_soon_each_is_found(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, json.dumps(a_report()))}:/usr/bin:/bin")
    assert main(["bench", "verification", "--model", str(model), "--layers", "3:5"]) == 0
    shown = capsys.readouterr().out
    assert "459 sequences" in shown
    assert "never" in shown
    assert "--layers 3:5" in (tmp_path / "asked").read_text()


def test_honest_segments_that_are_refused_make_it_fail(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, json.dumps(a_report(refused=1)))}:/usr/bin:/bin")
    assert main(["bench", "verification", "--model", str(model), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["honest"]["extrapolated_at_1e-6"] == 0.04


@pytest.mark.parametrize(("words", "said"), [(["--sample-percent", "0"], "--sample-percent is 0"), ([], "answered with no figures")])
def test_bad_input_and_answers_are_named(tmp_path, model, monkeypatch, capsys, *, words, said):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, 'no JSON')}:/usr/bin:/bin")
    assert main(["bench", "verification", "--model", str(model), *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("refused", "percent", "sequences"), [(1, 1, 459), (1, 100, 1), (1, 10, 44), (0.5, 1, 919), (0, 1, None)])
def test_how_many_sequences_are_served_until_one_is_found(refused, percent, sequences):
    assert sequences_until_found(refused, percent) == sequences
