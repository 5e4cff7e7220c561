"""Which tensors a decoder has, and of which shapes, from its configuration: names as in checkpoints, with the base model's prefix."""

from collections.abc import Mapping
from typing import Any

from splitinference_modelfiles.rules.experts import Experts
from splitinference_modelfiles.rules.families import DECODERS, Family
from splitinference_modelfiles.rules.settings import yes
from splitinference_modelfiles.rules.shapes import Shapes, Sizes


def decoder_shapes(config: Mapping[str, Any], family: Family, sizes: Sizes, experts: Experts | None) -> Shapes:
    """All tensors but the head."""
    if family is DECODERS["gpt2"]:
        return _gpt2(sizes)
    shapes: Shapes = {f"{family.embedding}.weight": (sizes.vocabulary, sizes.hidden), **_norm(family, family.norm, sizes.hidden)}
    whole_block = _neox_block(config, family, sizes) if family is DECODERS["gpt_neox"] else _attention_and_norms(config, family, sizes)
    plain = whole_block if family is DECODERS["gpt_neox"] else whole_block | _feed_forward(config, family, sizes)
    routed = whole_block | experts.shapes(sizes.hidden) if experts else {}
    for number in range(sizes.blocks):
        block = routed if experts and number in experts.blocks else plain
        shapes |= {f"{family.blocks}.{number}.{name}": shape for name, shape in block.items()}
    return shapes


def _attention_and_norms(config: Mapping[str, Any], family: Family, sizes: Sizes) -> Shapes:
    hidden, width = sizes.hidden, sizes.head_dim
    queries, keys = sizes.heads * width, sizes.kv_heads * width
    all_bias = family.bias_key is not None and yes(config, family.bias_key, family.bias)
    block: Shapes = {}
    for name in family.norms:
        block |= _norm(family, name, hidden)
    matrices = (("q", queries, hidden), ("k", keys, hidden), ("v", keys, hidden), ("o", hidden, queries))
    if family.fused:
        matrices = (("qkv", queries + 2 * keys, hidden), ("o", hidden, queries))  # type: ignore[assignment]
    for name, rows, columns in matrices:
        block |= _linear(f"self_attn.{name}_proj", rows, columns, all_bias or (family.qkv_bias and name != "o"))
    if family.head_norms:
        norms = (width, width) if family.head_norms == "head" else (queries, keys)
        block |= {"self_attn.q_norm.weight": norms[:1], "self_attn.k_norm.weight": norms[1:]}
    if family.sinks:
        block["self_attn.sinks"] = (sizes.heads,)
    return block


def _feed_forward(config: Mapping[str, Any], family: Family, sizes: Sizes) -> Shapes:
    hidden, inner = sizes.hidden, sizes.inner
    bias = family.mlp_bias_key is not None and yes(config, family.mlp_bias_key, False)
    if family.all_bias and family.bias_key is not None:
        bias = yes(config, family.bias_key, family.bias)
    if family.plain_mlp is not None:
        up, down = family.plain_mlp
        return _linear(f"mlp.{up}", inner, hidden, bias) | _linear(f"mlp.{down}", hidden, inner, bias)
    if family.fused:
        return _linear("mlp.gate_up_proj", 2 * inner, hidden, bias) | _linear("mlp.down_proj", hidden, inner, bias)
    gated = _linear("mlp.gate_proj", inner, hidden, bias) | _linear("mlp.up_proj", inner, hidden, bias)
    return gated | _linear("mlp.down_proj", hidden, inner, bias)


def _neox_block(config: Mapping[str, Any], family: Family, sizes: Sizes) -> Shapes:
    hidden, inner, bias = sizes.hidden, sizes.inner, yes(config, "attention_bias", family.bias)
    block = _norm(family, "input_layernorm", hidden) | _norm(family, "post_attention_layernorm", hidden)
    block |= _linear("attention.query_key_value", 3 * hidden, hidden, bias) | _linear("attention.dense", hidden, hidden, bias)
    return block | _linear("mlp.dense_h_to_4h", inner, hidden, True) | _linear("mlp.dense_4h_to_h", hidden, inner, True)


def _gpt2(sizes: Sizes) -> Shapes:
    hidden, inner = sizes.hidden, sizes.inner
    shapes: Shapes = {"transformer.wte.weight": (sizes.vocabulary, hidden), "transformer.wpe.weight": (sizes.positions, hidden)}
    for number in range(sizes.blocks):
        block = f"transformer.h.{number}"
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.weight": (hidden,), f"{block}.{name}.bias": (hidden,)}
        matrices = (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        )
        for name, rows, columns in matrices:
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (columns,)}
    return shapes | {"transformer.ln_f.weight": (hidden,), "transformer.ln_f.bias": (hidden,)}


def _linear(path: str, rows: int, columns: int, bias: bool) -> Shapes:
    return {f"{path}.weight": (rows, columns)} | ({f"{path}.bias": (rows,)} if bias else {})


def _norm(family: Family, path: str, size: int) -> Shapes:
    shapes: Shapes = {f"{path}.weight": (size,)}
    if family.norm_bias:
        shapes[f"{path}.bias"] = (size,)
    return shapes
