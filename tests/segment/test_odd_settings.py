"""Settings that a family does not have, nulls, and values of another kind: what is accepted loads, and gives transformers' logits."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILIES, write_random
from quantized_models import run
from random_models import CONFIGS
from transformers import AutoModelForCausalLM

from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers

IDS = [5, 99, 17, 3, 150, 42, 42, 8, 201, 77, 30, 12, 64, 9, 110, 23, 7, 181, 55, 2]
OF_OTHER_FAMILIES = {
    "logits_scaling": 3.0, "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5,
    "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 4, "rope_local_base_freq": 10.0,
    "no_rope_layers": [0, 0], "use_sliding_window": True, "max_window_layers": 1, "sliding_window_pattern": 2, "scale_embedding": 2.0,
    "num_local_experts": 4, "swiglu_limit": 1.0,
    "head_dim": 16, "num_key_value_heads": 2, "use_parallel_residual": False, "scale_attn_by_inverse_layer_idx": True,
}  # fmt: skip
UNUSED = {
    "auto_map": None, "attn_implementation": "flash_attention_2", "dtype": "nonsense", "torch_dtype": None, "num_labels": "many",
    "attention_dropout": 7.5, "hidden_dropout": 7.5, "id2label": {}, "problem_type": "none of them", "text_config": None,
    "router_jitter_noise": "none", "router_aux_loss_coef": 0,
}  # fmt: skip
BASES = ("mixtral", "llama", "mistral-window", "qwen2", "gpt2", "gemma2", "granite", "gpt_neox", "olmo2")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    root, configs, made = tmp_path_factory.mktemp("odd"), {**CONFIGS, **FAMILIES}, {}
    for name in BASES:
        # Mistral has no layer_types: with that key transformers takes it for Ministral, which the image does not have.
        kinds = {} if name.startswith("mistral") else {"layer_types": None}
        folder = write_random(type(configs[name])(**{**configs[name].to_dict(), "num_hidden_layers": 2, **kinds}), root / name)
        made[name] = folder, json.loads((folder / "config.json").read_text())
    return made


def split(folder: Path) -> torch.Tensor:
    return run([Layers(folder, 0, 2, torch.float32), Layers(folder, 2, 4, torch.float32)], IDS)


def unsplit(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("base", BASES)
def test_settings_of_other_families_change_what_they_change_in_transformers(
    base: str, bases: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    folder, plain = bases[base]
    some = {}
    for key, value in OF_OTHER_FAMILIES.items():
        (folder / "config.json").write_text(json.dumps({**plain, key: value}))
        with contextlib.suppress(UnsupportedModelError):
            accepted(folder)
            some[key] = value
    (folder / "config.json").write_text(json.dumps({**plain, **some}))
    assert len(some) > 8
    torch.testing.assert_close(split(folder), unsplit(folder), atol=3e-4, rtol=3e-4, msg=f"{base} {list(some)}")


@pytest.mark.parametrize("base", BASES)
def test_what_segments_do_not_use_cannot_fail(base: str, bases: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, plain = bases[base]
    (folder / "config.json").write_text(json.dumps(plain))
    expected = split(folder)
    (folder / "config.json").write_text(json.dumps({**plain, **UNUSED}))
    assert torch.equal(split(folder), expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text_config": {"hidden_size": 64}}, "text_config is there, so the model has several parts"),
        ({"decoder": {}}, "decoder is there"),
        ({"layer_types": ["full_attention"]}, "layer_types should name one of full_attention, sliding_attention for each of 2 blocks"),
        ({"layer_types": 2}, "layer_types should name"),
        ({"layer_types": ["full_attention", None]}, "layer_types should name"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types is not served for"),
        ({"layer_types": ["full_attention"] * 2, "sliding_window": 16}, "layer_types is not served for"),
        ({"is_encoder_decoder": 0}, "is_encoder_decoder is 0"),
        ({"head_dim": 17}, "heads of 17 numbers cannot be rotated"),
    ],
)
@pytest.mark.parametrize("base", ["llama", "mistral-window"])
def test_what_transformers_would_fail_on_is_refused_when_planned(
    base: str, changes: dict[str, Any], says: str, bases: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    folder, plain = bases[base]
    (folder / "config.json").write_text(json.dumps({**plain, **changes}))
    with pytest.raises(UnsupportedModelError, match=says):
        accepted(folder)


def test_a_null_that_qwen2_cannot_have_is_refused_when_planned(bases: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, plain = bases["qwen2"]
    (folder / "config.json").write_text(json.dumps({**plain, "head_dim": None}))
    with pytest.raises(UnsupportedModelError, match="head_dim is null"):
        accepted(folder)


@pytest.mark.parametrize("key", ["num_experts_per_tok", "num_local_experts"])
def test_a_null_number_of_experts_is_refused_when_planned(key: str, bases: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, plain = bases["mixtral"]
    (folder / "config.json").write_text(json.dumps({**plain, key: None}))
    with pytest.raises(UnsupportedModelError, match=f"{key} is null"):
        accepted(folder)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers has 1 entries for 3 blocks"),
        ("gpt_oss", {"original_max_position_embeddings": None}, "original_max_position_embeddings is null"),
        ("qwen3_moe", {"decoder_sparse_step": None}, "decoder_sparse_step is null"),
        ("phi3 with longrope", {"original_max_position_embeddings": 1}, r"original_max_position_embeddings should be a number above 1"),
    ],
)
def test_settings_of_one_family_that_would_fail_are_refused_when_planned(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = write_random(FAMILIES[name], tmp_path)
    plain = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**plain, **changes}))
    with pytest.raises(UnsupportedModelError, match=says):
        accepted(folder)


def test_a_model_without_rope_has_none_whatever_its_configuration_says(bases: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, plain = bases["gpt2"]
    (folder / "config.json").write_text(json.dumps(plain))
    expected = split(folder)
    (folder / "config.json").write_text(json.dumps({**plain, "rope_scaling": "none", "head_dim": "none", "num_key_value_heads": 1}))
    assert torch.equal(split(folder), expected)


def test_a_neox_has_no_heads_of_its_own_for_keys_and_values(bases: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    folder, plain = bases["gpt_neox"]
    (folder / "config.json").write_text(json.dumps({**plain, "head_dim": 2, "num_key_value_heads": 1}))
    torch.testing.assert_close(split(folder), unsplit(folder), atol=3e-4, rtol=3e-4)
