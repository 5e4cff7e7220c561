"""What a linear map reads at a boundary, on models small enough to know the answer."""

import json
import random
from pathlib import Path

import pytest
import torch

from splitinference_segment.programs import leakage
from splitinference_segment.programs.leakage import WINDOW, Map, TooLittleTextError, recovery
from splitinference_segment.torch_models.layers import Layers


def text(tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(211), k=tokens)


def test_the_first_boundary_tells_every_token_and_the_last_every_answer(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 0, 7, torch.float32)
    found = recovery(layers, text(8 * WINDOW, 1), text(2 * WINDOW, 2))
    assert [each.boundary for each in found] == [1, 2, 3, 4, 5, 6]
    assert found[0].prompt == 100.0, "an embedding is its token"
    assert found[-1].answer > 90.0, "the head is public"
    assert found[-1].prompt < found[0].prompt
    assert found[0].answer < found[-1].answer
    assert all(each.percent == max(each.prompt, each.answer) for each in found)


def test_text_that_was_learned_from_is_not_what_is_tried(models: dict[str, Path]) -> None:
    """Random answers cannot be learned: tried on its own text, a map with as many coefficients as rows would seem to read them."""
    generator = torch.Generator().manual_seed(3)
    given, noise = torch.randn(70, 64, generator=generator), torch.randn(70, 8, generator=generator)
    learned = Map(64, 8)
    learned.add(given, noise)
    seen = torch.cat([given, torch.ones(70, 1)], dim=1) @ learned.learned()
    fresh = torch.cat([torch.randn(70, 64, generator=generator), torch.ones(70, 1)], dim=1) @ learned.learned()
    other = torch.randn(70, 8, generator=generator)
    assert (seen - noise).norm() < 0.8 * (fresh - other).norm()


def test_rows_may_come_in_any_parts() -> None:
    generator = torch.Generator().manual_seed(5)
    given, wanted = torch.randn(300, 16, generator=generator), torch.randn(300, 4, generator=generator)
    whole, parts = Map(16, 4), Map(16, 4)
    whole.add(given, wanted)
    for start in range(0, 300, 70):
        parts.add(given[start : start + 70], wanted[start : start + 70])
    assert torch.allclose(whole.learned(), parts.learned(), atol=1e-5)


def test_too_little_text_is_said_with_the_numbers(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 0, 7, torch.float32)
    with pytest.raises(TooLittleTextError, match=f"100 tokens to learn from and {WINDOW}"):
        recovery(layers, text(100, 1), text(WINDOW, 2))


def test_a_folder_without_a_model_ends_with_2_and_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leakage.main(["--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("segment-leakage: ")


def test_the_public_text_is_enough_for_the_defaults() -> None:
    assert len(leakage.public_text()) > 4 * (leakage.TRAIN_TOKENS + leakage.TEST_TOKENS)


@pytest.mark.skipif("SI_TEST_MODEL" not in __import__("os").environ, reason="needs the real model")
def test_the_real_model(capsys: pytest.CaptureFixture[str]) -> None:
    folder = __import__("os").environ["SI_TEST_MODEL"]
    assert leakage.main(["--model", folder, "--tokens", "2048", "--test-tokens", "256"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["boundaries"]) == report["layers"] - 1
    assert report["boundaries"][0]["prompt"] > 80  # so little text gives less than the defaults do
    assert report["boundaries"][-1]["answer"] > 70
