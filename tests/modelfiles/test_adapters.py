"""What of PEFT's format is served: plain LoRA on linear layers of blocks. All else is refused with a reason."""

import json
from typing import Any

import pytest

from splitinference_modelfiles.adapters import AdapterRefusedError, read_config, read_names

PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
Q = "base_model.model.model.layers.3.self_attn.q_proj"


def config(**changes: Any) -> bytes:
    return json.dumps(PLAIN | changes).encode()


def test_the_factor_is_alpha_over_the_rank_or_over_its_root() -> None:
    assert read_config(config()).scaling("model.layers.0.self_attn.q_proj", 8) == 2.0
    assert read_config(config(use_rslora=True, r=16)).scaling("model.layers.0.self_attn.q_proj", 16) == 4.0


def test_patterns_give_layers_their_own_rank_and_alpha() -> None:
    read = read_config(
        config(rank_pattern={"v_proj": 4, r"layers\.1\.mlp\.up_proj": 2}, alpha_pattern={"^model.layers.0.self_attn.q_proj": 32})
    )
    assert [read.rank_of(f"model.layers.1.{layer}") for layer in ("self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")] == [4, 2, 8]
    assert read.rank_of("model.layers.11.mlp.up_proj") == 8
    assert read.scaling("model.layers.0.self_attn.q_proj", 8) == 4.0
    assert read.scaling("model.layers.1.self_attn.q_proj", 8) == 2.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; LORA is served"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"use_dora": True}, "use_dora is not served: DoRA scales whole weights"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is not served"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is not served"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is not served"),
        ({"lora_bias": True}, "lora_bias is not served"),
        ({"bias": "all"}, "bias is 'all'; served is none"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights is 'OLoRA'"),
        ({"r": 0}, "r is 0, expected a whole number from 1"),
        ({"r": True}, "r is True"),
        ({"r": 10**9}, "expected a whole number from 1 to 1024"),
        ({"lora_alpha": "16"}, "lora_alpha and alpha_pattern should be numbers"),
        ({"lora_alpha": float("inf")}, "lora_alpha and alpha_pattern should be numbers"),
        ({"rank_pattern": {"q_proj": -1}}, "rank_pattern should be an object of whole numbers"),
        ({"rank_pattern": {"(a+)+$": 4}}, "is not a path, or a simple pattern of paths"),
        ({"alpha_pattern": {"(": 4}}, "is no regular expression"),
    ],
)
def test_what_is_beyond_plain_lora_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(AdapterRefusedError) as refused:
        read_config(config(**changes))
    assert says in str(refused.value)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe"])
def test_what_is_no_configuration_is_refused(text: bytes) -> None:
    with pytest.raises(AdapterRefusedError, match=r"adapter_config\.json is not (JSON|a JSON object)"):
        read_config(text)


def test_neutral_values_are_plain_lora() -> None:
    neutral = {"use_dora": False, "modules_to_save": None, "target_parameters": None, "bias": "none", "init_lora_weights": True}
    assert read_config(config(**neutral, task_type=None, lora_dropout=0.1, inference_mode=True)).rank == 8


def test_names_tell_block_layer_and_half() -> None:
    names = [f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"]
    more = "base_model.model.transformer.h.12.attn.c_attn"
    found = read_names([*names, f"{more}.lora_A.weight", f"{more}.lora_B.weight"])
    assert [(t.block, t.layer, t.half) for t in found.values()] == [
        (3, "self_attn.q_proj", "A"), (3, "self_attn.q_proj", "B"), (12, "attn.c_attn", "A"), (12, "attn.c_attn", "B"),
    ]  # fmt: skip
    assert found[names[0]].path == "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "has no tensors"),
        ([f"{Q}.lora_A.weight"], "lacks its other half"),
        (["base_model.model.lm_head.lora_A.weight"], "embedding, head and other layers are not served"),
        (["base_model.model.model.embed_tokens.lora_embedding_A"], "is no LoRA of a linear layer in a block"),
        (["base_model.model.model.layers.0.block_sparse_moe.experts.3.w1.lora_A.weight"], "changes an expert, which is not served"),
        (["base_model.model.model.layers.0.mlp.experts.base_layer.lora_A.weight"], "changes an expert, which is not served"),
        (["base_model.model.model.embed_tokens.lora_A.weight"], "embedding, head and other layers are not served"),
        ([f"{Q}.lora_magnitude_vector.weight"], "is no LoRA of a linear layer in a block"),
        ([f"{Q}.lora_A.weight", f"{Q}.lora_A.default.weight", f"{Q}.lora_B.weight"], "two tensors of the adapter are for the same half"),
    ],
)
def test_tensors_that_are_something_else_are_refused(names: list[str], says: str) -> None:
    with pytest.raises(AdapterRefusedError) as refused:
        read_names(names)
    assert says in str(refused.value)
