"""`bench privacy` with an engine that is not there, or answers what is no table; the measuring itself: tests/segment/test_leakage.py."""

import json
from pathlib import Path

import pytest
import yaml

from splitinference.cli.bench.segments.privacy import Boundary, Report, as_yaml, lowest
from splitinference.cli.main import main
from splitinference.controller.api.spec import Resource, read_resource

TABLE = {
    "v": 1,
    "text": "Python's documentation",
    "tokens": {"train": 12288, "test": 2048},
    "layers": 5,
    "boundaries": [
        {"boundary": 1, "prompt": 99.9, "answer": 1.0},
        {"boundary": 2, "prompt": 60.0, "answer": 20.0},
        {"boundary": 3, "prompt": 40.0, "answer": 55.5},
        {"boundary": 4, "prompt": 30.0, "answer": 100.0},
    ],
}


def an_engine(folder: Path, answer: str, status: int = 0) -> Path:
    """A Docker client that has every image, and whose containers say this."""
    client = folder / "docker"
    run = f"cat <<'END'\n{answer}\nEND\nexit {status}"
    client.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\ncase $1 in version) ;; images) echo found ;; run) {run} ;; esac\n')
    client.chmod(0o755)
    return folder


def test_the_table_is_what_a_resource_takes(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, json.dumps(TABLE))}:/usr/bin:/bin")
    assert main(["bench", "privacy", "--model", str(model), "--yaml"]) == 0
    spec = yaml.safe_load(capsys.readouterr().out)["spec"]
    assert spec["privacy"]["tokenRecoveryPercent"] == [99.9, 60, 55.5, 100]
    spec["privacy"]["maxTokenRecoveryPercent"] = 60
    body = {"metadata": {"name": "a"}, "spec": {**spec, "model": {"id": "m", "source": {"hostPath": {"path": "/m"}}}}}
    assert isinstance(read_resource(body), Resource)
    asked = (tmp_path / "asked").read_text()
    assert "--network none" in asked
    assert f"{model}:/model:ro" in asked


def test_a_reader_is_told_the_best_cut(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, json.dumps(TABLE))}:/usr/bin:/bin")
    assert main(["bench", "privacy", "--model", str(model)]) == 0
    assert "A node that runs layer 2 alone reads 60.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [("no JSON", 0, "answered with no table"), (json.dumps({**TABLE, "v": 2}), 0, "answered with no table"), ("", 2, "docker run failed")],
)
def test_an_image_that_cannot_measure(tmp_path, model, monkeypatch, capsys, *, answer, status, words):
    monkeypatch.setenv("PATH", f"{an_engine(tmp_path, answer, status)}:/usr/bin:/bin")
    assert main(["bench", "privacy", "--model", str(model)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [(["--model", "/nowhere"], "/nowhere has no config.json"), ([], "is not a file")])
def test_bad_input_is_named(model, capsys, words, said):
    assert main(["bench", "privacy", *(words or ["--model", str(model), "--text", "/nowhere/text"])]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error or "no Docker engine answers" in error


def test_the_least_that_a_node_reads_is_of_the_worse_side():
    report = Report.model_validate(TABLE)
    assert lowest(report.boundaries) == (60.0, 2)
    assert (
        as_yaml(report.model_copy(update={"boundaries": tuple(Boundary(boundary=n, prompt=50, answer=1) for n in range(1, 40))})).count(
            "50"
        )
        == 40
    )
