"""What `bench serve` makes of measurements, and what it says where it cannot measure. The measuring itself: e2e/test_data_plane.py."""

import itertools
import json
import struct
from pathlib import Path

import jsonschema
import pytest

from splitinference.cli.bench.serving.containers import CannotMeasure
from splitinference.cli.bench.serving.figures import (
    Measured,
    Percentiles,
    Round,
    cuts,
    per_core,
    prefill_ratio,
    setup,
    speed_ratio,
    token_parts,
)
from splitinference.cli.bench.serving.serve import layer_bytes
from splitinference.cli.main import main
from splitinference.cli.schemas import schemas

SAMPLE = Path(__file__).parent / "bench-serve.json"


def a_round(*, ms: float, tokens: int = 10, clients: int = 1, first_ms: float = 50.0, text: str = "as it should be") -> Round:
    one = Measured(first_ms=first_ms, gaps_ms=(10.0, 12.0), ms=ms, tokens=tokens, text=text)
    return Round(ms=ms, requests=(one,) * clients)


def test_tokens_of_all_clients_count() -> None:
    assert a_round(ms=500, tokens=10, clients=4).tokens_per_second == 80


def test_percentiles_are_values_that_were_seen() -> None:
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(p50=2.0, p90=3.0, p99=3.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    unsplit = [a_round(ms=100), a_round(ms=1000), a_round(ms=10)]  # a machine that is disturbed, and then is not
    assert speed_ratio([a_round(ms=200), a_round(ms=2000), a_round(ms=20)], unsplit) == 0.5


def test_many_clients_are_measured_against_what_as_many_cores_could_do() -> None:
    assert per_core([a_round(ms=1000, clients=8)], [a_round(ms=500)], cores=2) == 2.0


def test_what_the_links_need_is_not_counted_against_a_split_prefill() -> None:
    assert prefill_ratio([a_round(ms=1, first_ms=130)], [a_round(ms=1, first_ms=100)], transfer_ms=30) == 1.0


def test_parts_of_a_tokens_time_are_all_of_it() -> None:
    stages = {"a": {"computeMs": 10.0, "queueMs": 0.5, "linkMs": 1.0}, "b": {"computeMs": 12.0, "queueMs": 0.25, "linkMs": 0.0}}
    found = token_parts(27.0, {"stages": stages, "ingressMs": 2.0})
    assert found == {"compute": 22.0, "queue": 0.75, "links": 1.0, "ingress": 2.0, "rest": 1.25, "all": 27.0}


def test_another_text_in_one_round_is_told() -> None:
    rounds = [a_round(ms=10), a_round(ms=10, text="something else")]
    assert not setup("segments-3", 3, 12, rounds, ["as it should be"]).same_text_as_unsplit
    assert setup("segments-3", 3, 12, rounds[:1], ["as it should be"]).same_text_as_unsplit


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_cuts_are_whole_and_even_in_bytes(segments: int) -> None:
    sizes = [0.0, *[7.0] * 30, 56.0]
    found = cuts(sizes, segments)
    assert found[0] == 0
    assert found[-1] == len(sizes)
    assert len(found) == segments + 1
    parts = [sum(sizes[a:b]) for a, b in itertools.pairwise(found)]
    assert max(parts) - min(parts) <= 2 * 7.0 or segments == 4  # in four, the head alone is a fifth of the model


def test_more_segments_than_balance_allows_still_have_a_layer_each() -> None:
    assert cuts([0.0, 1.0, 1.0, 100.0], 4) == (0, 1, 2, 3, 4)


def test_bytes_of_layers_come_from_the_files_headers(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": 100, "model.layers.0.mlp.up.weight": 30, "model.layers.1.mlp.up.weight": 40}
    at, header = 0, {}
    for name, size in tensors.items():
        header[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    assert layer_bytes(tmp_path) == [0.0, 30.0, 40.0, 100.0]


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotMeasure, match="no safetensors"):
        layer_bytes(tmp_path)


def test_without_an_engine_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert main(["bench", "serve", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "bench serve runs the segment and gateway images in containers, and no Docker engine answers: start one.\n"
    )


def test_without_a_model_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPLITINFERENCE_CACHE", str(tmp_path))
    assert main(["bench", "serve"]) == 2
    assert "--model" in capsys.readouterr().err


def test_a_report_that_was_measured_is_what_the_schema_says() -> None:
    jsonschema.validate(json.loads(SAMPLE.read_text()), schemas()["bench-serve.schema.json"])
