"""Each family, cut anywhere, gives the logits of transformers' unsplit model, and holds the bytes that its tensor table says."""

import functools
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, write_random
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from splitinference_modelfiles.stored.folder import tensor_tables
from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.weights import MissingWeightsError
from splitinference_segment.torch_ops.spans import Span

PROMPT = [5, 99, 17, 3, 150, 42, 42, 8, 201, 77, 30, 12, 64, 9, 110, 23, 7, 181, 55, 2]
NEXT = [31, 8, 140]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_random(config, root / name.replace(" ", "-")) for name, config in FAMILIES.items()}


def unsplit(folder: Path) -> torch.Tensor:
    """Logits after the prompt, and after each of the tokens that follow one by one: [1 + NEXT, vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    cache, found = DynamicCache(config=model.config), []
    with torch.inference_mode():
        for ids in (PROMPT, *([token] for token in NEXT)):
            found.append(model(torch.tensor([ids]), past_key_values=cache, use_cache=True).logits[0, -1])
    return torch.stack(found)


def split(parts: Sequence[Layers], pieces: Sequence[Sequence[int]]) -> torch.Tensor:
    """Logits after each piece of one sequence."""
    entries, position, found = [KvEntry("s", part.kv_shape.allocate(64)) for part in parts], 0, []
    with torch.inference_mode():
        for ids in pieces:
            values = torch.tensor(list(ids))
            for part, entry in zip(parts, entries, strict=True):
                values = part.run(values, [Span(entry, 0, len(ids), position)])
            position += len(ids)
            found.append(parts[-1].logits(values[-1:])[0])
    return torch.stack(found)


@functools.cache
def loaded(folder: Path, start: int, end: int) -> Layers:
    return Layers(folder, start, end, torch.float32)


def cut(folder: Path, cuts: Sequence[int]) -> list[Layers]:
    return [loaded(folder, start, end) for start, end in itertools.pairwise(cuts)]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_split_point_gives_the_unsplit_models_logits(name: str, folders: dict[str, Path]) -> None:
    last = FAMILIES[name].num_hidden_layers + 2
    expected = unsplit(folders[name])
    assert expected.std() > 0.1, "logits that are all alike tell nothing"
    pieces = [PROMPT, *([token] for token in NEXT)]
    for cuts in ([0, last], *([0, at, last] for at in range(1, last)), range(last + 1)):
        torch.testing.assert_close(split(cut(folders[name], list(cuts)), pieces), expected, atol=2e-4, rtol=2e-4, msg=f"{name} {cuts}")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_in_pieces_gives_the_same_logits(name: str, folders: dict[str, Path]) -> None:
    parts = cut(folders[name], [0, 3, FAMILIES[name].num_hidden_layers + 2])
    pieces = [PROMPT[:7], PROMPT[7:8], PROMPT[8:]]
    torch.testing.assert_close(split(parts, pieces)[-1], split(parts, [PROMPT])[-1], atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_sequences_in_one_row_give_what_each_gives_alone(name: str, folders: dict[str, Path]) -> None:
    parts = cut(folders[name], [0, 2, FAMILIES[name].num_hidden_layers + 2])
    prompts, following = [PROMPT, PROMPT[:5], PROMPT[3:18]], [31, 32, 33]
    alone = torch.stack([split(parts, [tokens, [token]])[-1] for tokens, token in zip(prompts, following, strict=True)])
    entries = [[KvEntry("s", part.kv_shape.allocate(64)) for part in parts] for _ in prompts]
    with torch.inference_mode():
        for tokens, own in zip(prompts, entries, strict=True):
            values = torch.tensor(tokens)
            for part, entry in zip(parts, own, strict=True):
                values = part.run(values, [Span(entry, 0, len(tokens), 0)])
        values = torch.tensor(following)
        for stage, part in enumerate(parts):
            values = part.run(values, [Span(own[stage], i, 1, len(prompts[i])) for i, own in enumerate(entries)])
        together = parts[-1].logits(values)
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_segments_hold_what_the_tensor_table_says(name: str, folders: dict[str, Path]) -> None:
    _, model = accepted(folders[name])
    _, table = tensor_tables(str(folders[name]))
    last = FAMILIES[name].num_hidden_layers + 2
    whole = Layers(folders[name], 0, last, torch.bfloat16)
    assert whole.weight_bytes() == 2 * sum(table[stored].elements for stored in model.used.values())
    parts = [Layers(folders[name], start, end, torch.bfloat16) for start, end in ((0, 2), (2, last))]
    head = 2 * whole.vocabulary * whole.hidden if model.tied else 0
    assert sum(part.weight_bytes() for part in parts) == whole.weight_bytes() + head


def test_longrope_has_the_positions_of_its_first_training(folders: dict[str, Path]) -> None:
    _, model = accepted(folders["phi3 with longrope"])
    assert (model.rope, model.positions) == ("longrope", 128)


def test_an_expert_that_is_not_stored_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["mixtral"] / "model.safetensors")
    gone = "model.layers.2.block_sparse_moe.experts.3.w3.weight"
    assert tensors.pop(gone) is not None
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["mixtral"] / "config.json").read_text())
    with pytest.raises(MissingWeightsError, match=gone):
        Layers(tmp_path, 2, 4, torch.float32)
    assert len(Layers(tmp_path, 1, 2, torch.float32).blocks) == 1, "other blocks do not need it"


def test_an_expert_of_another_size_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["mixtral"] / "model.safetensors")
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((folders["mixtral"] / "config.json").read_text())
    with pytest.raises(MissingWeightsError, match=rf"{name} has shape \[95, 64\], expected \[96, 64\]"):
        Layers(tmp_path, 1, 2, torch.float32)


def test_phi3s_own_setting_of_the_first_training_wins_over_that_of_its_rope(tmp_path: Path) -> None:
    """As in transformers. The other way round, positions beyond it would be served with the wrong factors."""
    folder = write_random(FAMILIES["phi3 with longrope"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["original_max_position_embeddings"] = 512
    (folder / "config.json").write_text(json.dumps(config))
    assert accepted(folder)[1].positions == 128
    del config["original_max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    assert accepted(folder)[1].positions == 1024, "the default of 4096, within the model's positions"
