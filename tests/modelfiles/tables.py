"""Tensor tables of whole models, and sparse files with them: written without the rules under test, as publishers store them."""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "U8": 1, "I8": 1, "F8_E4M3": 1, "BOOL": 1}
Shapes = dict[str, tuple[int, ...]]


def llama(config: Mapping[str, Any], *, qkv_bias: bool = False, norms: bool = False, head: bool = False) -> Shapes:
    """The tensors of Llama and its relatives."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    shapes: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes[at + "self_attn.q_proj.weight"] = (heads * width, hidden)
        shapes[at + "self_attn.k_proj.weight"] = shapes[at + "self_attn.v_proj.weight"] = (kv_heads * width, hidden)
        shapes[at + "self_attn.o_proj.weight"] = (hidden, heads * width)
        shapes[at + "mlp.gate_proj.weight"] = shapes[at + "mlp.up_proj.weight"] = (inner, hidden)
        shapes[at + "mlp.down_proj.weight"] = (hidden, inner)
        shapes[at + "input_layernorm.weight"] = shapes[at + "post_attention_layernorm.weight"] = (hidden,)
        if qkv_bias:
            shapes[at + "self_attn.q_proj.bias"] = (heads * width,)
            shapes[at + "self_attn.k_proj.bias"] = shapes[at + "self_attn.v_proj.bias"] = (kv_heads * width,)
        if norms:
            shapes[at + "self_attn.q_norm.weight"] = shapes[at + "self_attn.k_norm.weight"] = (width,)
    return shapes | ({"lm_head.weight": (config["vocab_size"], hidden)} if head else {})


def gpt2(config: Mapping[str, Any], prefix: str = "") -> Shapes:
    """The tensors of GPT-2, with the mask that its publisher stores."""
    n, positions = config["n_embd"], config.get("n_positions", 1024)
    shapes: Shapes = {"wte.weight": (config["vocab_size"], n), "wpe.weight": (positions, n), "ln_f.weight": (n,), "ln_f.bias": (n,)}
    block: Shapes = {
        "ln_1.weight": (n,), "ln_1.bias": (n,), "ln_2.weight": (n,), "ln_2.bias": (n,), "attn.bias": (1, 1, positions, positions),
        "attn.c_attn.weight": (n, 3 * n), "attn.c_attn.bias": (3 * n,), "attn.c_proj.weight": (n, n), "attn.c_proj.bias": (n,),
        "mlp.c_fc.weight": (n, 4 * n), "mlp.c_fc.bias": (4 * n,), "mlp.c_proj.weight": (4 * n, n), "mlp.c_proj.bias": (n,),
    }  # fmt: skip
    for i in range(config["n_layer"]):
        shapes |= {f"h.{i}.{name}": shape for name, shape in block.items()}
    return {prefix + name: shape for name, shape in shapes.items()}


def bert(config: Mapping[str, Any], head: str = "Model", prefix: str = "") -> Shapes:
    """The tensors of BERT and RoBERTa. `prefix` is the base model's; `head` as the architecture's name ends."""
    n, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    old = config["model_type"] == "bert"
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (words, n),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        "embeddings.LayerNorm.weight": (n,),
        "embeddings.LayerNorm.bias": (n,),
    }
    parts = {"attention.self.query": (n, n), "attention.self.key": (n, n), "attention.self.value": (n, n), "attention.output.dense": (n, n),
             "intermediate.dense": (inner, n), "output.dense": (n, inner)}  # fmt: skip
    for i in range(config["num_hidden_layers"]):
        for name, shape in parts.items():
            shapes |= {f"encoder.layer.{i}.{name}.weight": shape, f"encoder.layer.{i}.{name}.bias": shape[:1]}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"encoder.layer.{i}.{name}.weight": (n,), f"encoder.layer.{i}.{name}.bias": (n,)}
    if old and head in ("Model", "ForSequenceClassification"):
        shapes |= {"pooler.dense.weight": (n, n), "pooler.dense.bias": (n,)}
    shapes = {prefix + name: shape for name, shape in shapes.items()}
    if head == "ForMaskedLM":
        top, dense, norm = ("cls.predictions", "transform.dense", "transform.LayerNorm") if old else ("lm_head", "dense", "layer_norm")
        shapes |= {f"{top}.{dense}.weight": (n, n), f"{top}.{dense}.bias": (n,), f"{top}.bias": (words,)}
        shapes |= {f"{top}.{norm}.weight": (n,), f"{top}.{norm}.bias": (n,)}
    if head == "ForTokenClassification" or (head == "ForSequenceClassification" and old):
        shapes |= {"classifier.weight": (9, n), "classifier.bias": (9,)}
    elif head == "ForSequenceClassification":
        shapes |= {
            "classifier.dense.weight": (n, n),
            "classifier.dense.bias": (n,),
            "classifier.out_proj.weight": (3, n),
            "classifier.out_proj.bias": (3,),
        }
    return shapes


def weights(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "BF16", dtypes: Mapping[str, str] | None = None) -> None:
    """A safetensors file with this table; its numbers are a hole of the file system."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        kind = (dtypes or {}).get(name, dtype)
        begin, end = end, end + prod(shape) * BYTES[kind]
        table[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)


def model(
    folder: Path, config: Mapping[str, Any], shapes: Shapes, *, files: int = 1, names: tuple[str, ...] = ("tokenizer.json",), **more: Any
) -> Path:
    """A model's folder, with an index if its weights are in several files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    for name in names:
        (folder / name).write_text("{}")
    if files == 1:
        weights(folder / "model.safetensors", shapes, **more)
        return folder
    weight_map: dict[str, str] = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = {name: shape for at, (name, shape) in enumerate(shapes.items()) if at * files // len(shapes) == number}
        weights(folder / file, part, **more)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
