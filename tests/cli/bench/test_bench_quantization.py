"""`bench quantization` with an engine that says what it is told; the measuring itself: tests/segment/test_loss_of_codes.py."""

import json

import pytest

from splitinference.cli.bench.segments.quantization import Report, as_markdown
from splitinference.cli.main import main
from tests.cli.bench.test_bench_privacy import an_engine

MIB = 2**20
SAID = {
    "v": 1,
    "text": "Python's documentation",
    "tokens": 4096,
    "dtype": "bfloat16",
    "ways": [
        {"name": "AsStored", "perplexity": 20.0, "agreement": 1.0, "planned_bytes": 256 * MIB, "measured_bytes": 257 * MIB},
        {"name": "Int4", "perplexity": 24.5, "agreement": 0.8, "planned_bytes": 100 * MIB, "measured_bytes": 102 * MIB},
    ],
}


@pytest.fixture
def asked(tmp_path, monkeypatch):
    def says(answer):
        monkeypatch.setenv("PATH", f"{an_engine(tmp_path, json.dumps(answer))}:/usr/bin:/bin")
        return tmp_path / "asked"

    return says


def test_a_table_for_the_docs(asked, model, tmp_path, capsys):
    (tmp_path / "mine-awq").mkdir()
    (tmp_path / "mine-awq" / "config.json").write_text("{}")
    words = asked(SAID)
    assert main(["bench", "quantization", "--model", str(model), "--checkpoint", str(tmp_path / "mine-awq"), "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1] == "| Int4 | 24.50 | 80.0% | 100.0 MiB | 102.0 MiB | +2.0% |"
    assert "--network none" in words.read_text()
    assert "--checkpoint mine-awq=/checkpoint/0" in words.read_text()


def test_memory_that_is_not_as_planned_is_said_and_is_exit_1(asked, model, capsys):
    way = {**SAID["ways"][1], "measured_bytes": 106 * MIB}
    asked({**SAID, "ways": [SAID["ways"][0], way]})
    assert main(["bench", "quantization", "--model", str(model)]) == 1
    assert "Int4: memory is off by more than 5%" in capsys.readouterr().out


def test_json_is_what_the_image_says(asked, model, capsys):
    asked(SAID)
    assert main(["bench", "quantization", "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == SAID


@pytest.mark.parametrize("answer", [{}, {**SAID, "v": 2}, {**SAID, "ways": []}])
def test_an_image_that_says_something_else(asked, model, capsys, answer):
    asked(answer)
    assert main(["bench", "quantization", "--model", str(model)]) == 2
    assert "answered with no figures" in capsys.readouterr().err


def test_a_checkpoint_without_a_configuration_is_named(asked, model, tmp_path, capsys):
    asked(SAID)
    assert main(["bench", "quantization", "--model", str(model), "--checkpoint", str(tmp_path)]) == 2
    assert "has no config.json" in capsys.readouterr().err


def test_the_table_has_a_row_for_each_way():
    assert len(as_markdown(Report.model_validate(SAID)).splitlines()) == 4
