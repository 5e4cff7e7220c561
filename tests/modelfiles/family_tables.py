"""Tensor tables of families beyond Llama, GPT-2 and BERT: written without the rules under test, as publishers store them."""

from collections.abc import Mapping
from typing import Any

from tests.modelfiles.tables import Shapes


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Numbers of all queries, of all keys, and of one head."""
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    return heads * width, (config.get("num_key_value_heads") or heads) * width, width


def _whole(config: Mapping[str, Any], block: Mapping[int, Shapes] | Shapes, *, head: bool, norm_bias: bool = False) -> Shapes:
    """Embedding, blocks, norm and head under Llama's names; `block` is one for all, or one for each."""
    hidden = config["hidden_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    shapes |= {"model.norm.bias": (hidden,)} if norm_bias else {}
    for i in range(config["num_hidden_layers"]):
        own: Shapes = block.get(i, block)  # type: ignore[call-overload, arg-type]
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in own.items()}
    return shapes | ({"lm_head.weight": (config["vocab_size"], hidden)} if head else {})


def _attention(config: Mapping[str, Any], bias: bool = False) -> Shapes:
    hidden, (queries, keys, _) = config["hidden_size"], _heads(config)
    rows = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    shapes: Shapes = {f"self_attn.{name}_proj.weight": shape for name, shape in rows.items()}
    return shapes | ({f"self_attn.{name}_proj.bias": shape[:1] for name, shape in rows.items()} if bias else {})


def _gated(config: Mapping[str, Any], inner: int) -> Shapes:
    hidden = config["hidden_size"]
    return {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden), "mlp.down_proj.weight": (hidden, inner)}


def _norms(hidden: int, *names: str, bias: bool = False) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (hidden,) for name in names}
    return shapes | ({f"{name}.bias": (hidden,) for name in names} if bias else {})


def gemma(config: Mapping[str, Any], *, head_norms: bool) -> Shapes:
    """Gemma 2 and, with norms of queries and keys, Gemma 3."""
    names = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    block = _attention(config) | _gated(config, config["intermediate_size"]) | _norms(config["hidden_size"], *names)
    if head_norms:
        block |= {"self_attn.q_norm.weight": (config["head_dim"],), "self_attn.k_norm.weight": (config["head_dim"],)}
    return _whole(config, block, head=False)


def phi3(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, (queries, keys, _) = config["hidden_size"], config["intermediate_size"], _heads(config)
    block: Shapes = {
        "self_attn.qkv_proj.weight": (queries + 2 * keys, hidden), "self_attn.o_proj.weight": (hidden, queries),
        "mlp.gate_up_proj.weight": (2 * inner, hidden), "mlp.down_proj.weight": (hidden, inner),
        **_norms(hidden, "input_layernorm", "post_attention_layernorm"),
    }  # fmt: skip
    return _whole(config, block, head=not config.get("tie_word_embeddings"))


def olmo2(config: Mapping[str, Any]) -> Shapes:
    queries, keys, _ = _heads(config)
    block = _attention(config) | _gated(config, config["intermediate_size"])
    block |= _norms(config["hidden_size"], "post_attention_layernorm", "post_feedforward_layernorm")
    block |= {"self_attn.q_norm.weight": (queries,), "self_attn.k_norm.weight": (keys,)}
    return _whole(config, block, head=True)


def granite(config: Mapping[str, Any]) -> Shapes:
    """Granite and SmolLM3."""
    block = _attention(config) | _gated(config, config["intermediate_size"])
    return _whole(config, block | _norms(config["hidden_size"], "input_layernorm", "post_attention_layernorm"), head=False)


def starcoder2(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    block = _attention(config, bias=True) | _norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    block |= {
        "mlp.c_fc.weight": (inner, hidden),
        "mlp.c_fc.bias": (inner,),
        "mlp.c_proj.weight": (hidden, inner),
        "mlp.c_proj.bias": (hidden,),
    }
    return _whole(config, block, head=not config.get("tie_word_embeddings", True), norm_bias=True)


def neox(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    block = _norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True)
    matrices = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
    }
    for name, shape in matrices.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    shapes: Shapes = {"gpt_neox.embed_in.weight": (words, hidden), "embed_out.weight": (words, hidden)}
    shapes |= {f"gpt_neox.final_layer_norm.{name}": (hidden,) for name in ("weight", "bias")}
    for i in range(config["num_hidden_layers"]):
        shapes |= {f"gpt_neox.layers.{i}.{name}": shape for name, shape in block.items()}
    return shapes


def mixtral(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    block = _attention(config) | _norms(hidden, "input_layernorm", "post_attention_layernorm")
    block["block_sparse_moe.gate.weight"] = (experts, hidden)
    for number in range(experts):
        at = f"block_sparse_moe.experts.{number}."
        block |= {at + "w1.weight": (inner, hidden), at + "w2.weight": (hidden, inner), at + "w3.weight": (inner, hidden)}
    return _whole(config, block, head=True)


def qwen3_moe(config: Mapping[str, Any]) -> Shapes:
    hidden, inner, experts, width = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"], config["head_dim"]
    shared = _attention(config) | _norms(hidden, "input_layernorm", "post_attention_layernorm")
    shared |= {"self_attn.q_norm.weight": (width,), "self_attn.k_norm.weight": (width,)}
    routed: Shapes = {**shared, "mlp.gate.weight": (experts, hidden)}
    for number in range(experts):
        at = f"mlp.experts.{number}."
        routed |= {
            at + "gate_proj.weight": (inner, hidden),
            at + "up_proj.weight": (inner, hidden),
            at + "down_proj.weight": (hidden, inner),
        }
    dense = shared | _gated(config, config["intermediate_size"])
    plain = config.get("mlp_only_layers") or []
    return _whole(
        config, {i: dense if i in plain else routed for i in range(config["num_hidden_layers"])}, head=not config["tie_word_embeddings"]
    )


def gpt_oss(config: Mapping[str, Any]) -> Shapes:
    """As it is stored in 16 bits."""
    hidden, inner, experts = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    block = _attention(config, bias=True) | _norms(hidden, "input_layernorm", "post_attention_layernorm")
    block |= {
        "self_attn.sinks": (config["num_attention_heads"],), "mlp.router.weight": (experts, hidden), "mlp.router.bias": (experts,),
        "mlp.experts.gate_up_proj": (experts, hidden, 2 * inner), "mlp.experts.gate_up_proj_bias": (experts, 2 * inner),
        "mlp.experts.down_proj": (experts, inner, hidden), "mlp.experts.down_proj_bias": (experts, hidden),
    }  # fmt: skip
    return _whole(config, block, head=True)
