"""Adapters in PEFT's format for small random models, and the models with them merged into their weights, which is what they mean."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM


def linear_layers(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The layers of a model whose paths end with a target, as PEFT finds them."""
    return {path: layer for path, layer in model.named_modules() if path.rpartition(".")[2] in targets}


def _sizes(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return int(layer.weight.shape[0]), int(layer.weight.shape[1])  # GPT-2's


def write_adapter(
    model_folder: Path,
    folder: Path,
    targets: Sequence[str],
    *,
    rank: int = 4,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> Path:
    """A random adapter for these layers, of one rank or of those of `rank_pattern`."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, layer in linear_layers(model, targets).items():
        inputs, outputs = _sizes(layer)
        own = next((value for key, value in config.get("rank_pattern", {}).items() if path.endswith(key)), rank)
        a, b = torch.randn(own, inputs, generator=generator) * 0.2, torch.randn(outputs, own, generator=generator) * 0.2
        tensors |= {f"base_model.model.{path}.lora_A.weight": a.to(dtype), f"base_model.model.{path}.lora_B.weight": b.to(dtype)}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 8, "target_modules": list(targets), **config}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def merged(model_folder: Path, folder: Path | None, scaling: Mapping[str, float] | float) -> Any:
    """The unsplit model with scaling·B·A added to its weights."""
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    return model if folder is None else merge(model, folder, scaling)


def merge(model: Any, folder: Path, scaling: Mapping[str, float] | float) -> Any:
    """The same model, changed: scaling·B·A is added to its weights."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        path = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = tensors[name.replace("lora_A", "lora_B")]
        factor = scaling if isinstance(scaling, float) else next(value for key, value in scaling.items() if path.endswith(key))
        change = factor * b.float() @ a.float()
        weight = model.get_submodule(path).weight
        weight.data += change if isinstance(model.get_submodule(path), nn.Linear) else change.T
    return model
