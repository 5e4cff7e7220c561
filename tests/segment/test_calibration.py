"""The bench of spot checks: dishonest segments differ from honest ones by what was done to them, and the tail is extrapolated as stated."""

import json
import math
import random
from pathlib import Path

import pytest
import torch

from splitinference_segment.programs import calibration
from splitinference_segment.programs.calibration import (
    CHEATS,
    SEQUENCE_TOKENS,
    Bench,
    extrapolated,
    figures,
    float8,
    int4_groups,
    int8_per_channel,
    measure,
    noise,
)


def test_honest_segments_pass_and_those_that_skip_or_change_weights_do_not(models: dict[str, Path]) -> None:
    """A model in float32, whose honest outputs hardly differ: a tolerance far below any cheat."""
    tokens = random.Random(1).choices(range(211), k=4 * SEQUENCE_TOKENS)
    report = measure(Bench(models["llama"], 2, 5, torch.float32), tokens, 3, 0.0005)
    honest, cheats = report["honest"], {each["name"]: each for each in report["cheats"]}  # type: ignore[index,union-attr]
    assert honest["refused"] == 0  # type: ignore[index]
    assert honest["worst"] < 1e-4  # type: ignore[index]
    assert cheats.keys() == {cheat.name for cheat in CHEATS}
    assert all(each["refused"] == 1.0 for name, each in cheats.items() if "groups" not in name), cheats
    json.dumps(report)


@pytest.mark.parametrize(("change", "levels"), [(int8_per_channel, 255), (int4_groups(32), 16), (float8, 255)])
def test_fewer_bits_leave_fewer_values(change: calibration.Change, levels: int) -> None:
    weight = torch.randn(3, 32)
    rounded = change(weight)
    assert all(len(row.unique()) <= levels for row in rounded)
    assert 0 < float((rounded - weight).norm() / weight.norm()) < 0.15
    assert torch.allclose(change(rounded), rounded, atol=1e-4), "a second time nothing changes, as for a model that was rounded before"


def test_noise_has_the_share_that_is_said_and_only_where_it_is_said() -> None:
    given = torch.randn(64, 512)
    share = (noise(0.02)(given) - given).norm(dim=1) / given.norm(dim=1)
    assert float(share.mean()) == pytest.approx(0.02, rel=0.05)
    changed = (noise(0.1, 16)(given) != given).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [15, 31, 47, 63]


def test_a_sequence_is_refused_for_its_mean_or_for_one_token() -> None:
    small, bad = torch.full((128,), 0.01), torch.full((128,), 0.01)
    bad[100] = 0.05
    assert figures("honest", [small], 0.016).refused == 0.0
    assert figures("one token", [small, bad], 0.016).refused == 0.5
    assert figures("mean", [small * 2.1], 0.016).refused == 1.0


def test_the_tail_of_a_known_distribution_is_found() -> None:
    """The logarithm is exponential beyond any threshold: the quantile is known in closed form."""
    uniform = torch.rand(200_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = extrapolated((-0.2 * uniform.log()).exp() * 0.01)
    assert found == pytest.approx(0.01 * math.exp(0.2 * math.log(1e6)), rel=0.15)


@pytest.mark.parametrize(
    "words", [["--layers", "0:3"], ["--layers", "3:99"], ["--layers", "x"], ["--sequences", "1"], ["--tolerance", "0"]]
)
def test_bad_input_ends_with_2_and_a_sentence(models: dict[str, Path], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--model", str(models["llama"]), *words]) == 2
    assert capsys.readouterr().err.startswith("segment-verification: --")


def test_a_folder_without_a_model_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibration.main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("segment-verification: ")
