"""What segment-quantization says of models small enough to know the answer; the real model: docs/how-to/quantized-model.md."""

import json
import random
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, write_random
from quantized_checkpoints import quantized
from quantized_models import replaced, run
from random_models import CONFIGS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from splitinference_modelfiles.held import INT4
from splitinference_segment.programs import off_grid, quantization
from splitinference_segment.programs.quantization import WINDOW, OtherModelError, Way, measured
from splitinference_segment.torch_models.layers import Layers


def text(tokens: int) -> list[int]:
    return random.Random(1).choices(range(211), k=tokens)


def test_figures_are_those_of_transformers_with_the_numbers_that_codes_stand_for(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = write_random(CONFIGS["llama"].__class__(**{**CONFIGS["llama"].to_dict(), "max_position_embeddings": WINDOW}), tmp_path / "m")
    ids = text(WINDOW + 7)
    plain, four, other = measured(
        [Way("AsStored", folder), Way(INT4, folder, INT4), Way("GPTQ", quantized(folder, tmp_path / "gptq", "GPTQ"))], ids, torch.float32
    )
    models = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), replaced(folder, INT4)]
    with torch.inference_mode():
        logits = [model(torch.tensor([ids[:WINDOW]])).logits[0] for model in models]  # type: ignore[operator]
    for found, own in zip((plain, four), logits, strict=True):
        surprise = torch.nn.functional.cross_entropy(own[:-1], torch.tensor(ids[1:WINDOW]))
        assert found.perplexity == pytest.approx(float(surprise.exp()), rel=1e-3)
        assert found.agreement == pytest.approx(float((own.argmax(1) == logits[0].argmax(1)).float().mean()), abs=0.005)
    assert plain.agreement == 1.0
    assert 0.05 < four.agreement < 0.9
    assert four.planned_bytes < plain.planned_bytes
    assert other.name == "GPTQ"
    assert 0.05 < other.agreement < 0.9


def test_another_model_is_no_checkpoint_of_this_one(models: dict[str, Path], tmp_path: Path) -> None:
    other = write_random(FAMILIES["olmo2"], tmp_path)
    ways = [Way("AsStored", models["llama"]), Way("another", other)]
    with pytest.raises(OtherModelError, match="another has 3 blocks and 211 tokens, the model has 5 and 211"):
        list(measured(ways, text(WINDOW), torch.float32))


@pytest.mark.parametrize("more", [[], ["--checkpoint", "nothing"], ["--text", "/nowhere"]])
def test_bad_input_ends_with_2_and_a_sentence(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert quantization.main(["--model", str(tmp_path), *more]) == 2
    assert capsys.readouterr().err.startswith("segment-quantization: ")


@pytest.mark.skipif("SI_TEST_MODEL" not in __import__("os").environ, reason="needs the real model")
def test_the_real_model_loses_little_with_eight_bits(capsys: pytest.CaptureFixture[str]) -> None:
    folder = __import__("os").environ["SI_TEST_MODEL"]
    assert quantization.main(["--model", folder, "--tokens", str(WINDOW)]) == 0
    plain, eight, four = json.loads(capsys.readouterr().out)["ways"]
    assert eight["perplexity"] < 1.05 * plain["perplexity"]
    assert eight["agreement"] > 0.9
    assert four["agreement"] > 0.6
    for way in (plain, eight, four):
        assert abs(way["measured_bytes"] / way["planned_bytes"] - 1) < 0.05, way


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_a_model_off_its_grid_computes_the_same_with_other_weights(name: str, models: dict[str, Path], tmp_path: Path) -> None:
    assert off_grid.main([str(models[name]), str(tmp_path)]) == 0
    ids = text(20)
    one, other = ([Layers(folder, 0, 7, torch.float32)] for folder in (models[name], tmp_path))
    torch.testing.assert_close(run(other, ids), run(one, ids), atol=1e-3, rtol=1e-3)
    before, after = (load_file(folder / "model.safetensors") for folder in (models[name], tmp_path))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key.rpartition(".layers.")[2] for key in same if ".layers." in key} == set(), "each tensor of a block is another"


def test_only_models_of_llamas_kind_are_moved(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert off_grid.main([str(models["gpt2"]), str(tmp_path)]) == 2
    assert "model_type is 'gpt2'" in capsys.readouterr().err
