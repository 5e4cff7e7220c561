"""Checkpoints of a small random Llama as other tools quantize and pack them, and the weights that they stand for: written from the formats'
descriptions, a code at a time, without the project's own unpacking."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]
Made = tuple[Tensors, torch.Tensor]
"""The tensors of one layer by suffix, and the weights [outputs, inputs] that they stand for."""
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs each place of a word holds."""


def codes(weights: torch.Tensor, bits: int, group: int, *, symmetric: bool, scales: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Codes from 0 on [outputs, inputs], scales and zero points [outputs, groups], by rounding to the nearest."""
    values = weights.float().view(len(weights), -1, group)
    most = (1 << bits) - 1
    if symmetric:
        scale = (values.abs().amax(2) / (most / 2)).clamp(min=1e-6).to(scales)
        zero = torch.full_like(scale, 1 << (bits - 1), dtype=torch.int32)
    else:
        low, high = values.amin(2).clamp(max=0), values.amax(2).clamp(min=0)
        scale = ((high - low) / most).clamp(min=1e-6).to(scales)
        zero = (-low / scale.float()).round().clamp(0, most).int()
    found = (values / scale.float()[..., None]).round() + zero[..., None]
    return found.clamp(0, most).int().view(weights.shape), scale, zero


def packed(values: torch.Tensor, bits: int, places: tuple[int, ...] | None = None) -> torch.Tensor:
    """int32 words along the last dimension, the first code lowest; `places`: which code of a word stands where."""
    each = 32 // bits
    padded = torch.nn.functional.pad(values, (0, -values.shape[-1] % each)).long()
    words = padded.view(*values.shape[:-1], -1, each)
    total = torch.zeros(words.shape[:-1], dtype=torch.int64)
    for place in range(each):
        total |= words[..., places[place] if places else place] << (bits * place)
    return (total - ((total >> 31) << 32)).to(torch.int32)


def gptq(
    bits: int = 4, group: int = 32, *, symmetric: bool = False, ordered: bool = False, second: bool = False
) -> Callable[[torch.Tensor], Made]:
    """As AutoGPTQ writes it: [inputs, outputs], zeros less one but in the second format."""

    def made(weights: torch.Tensor) -> Made:
        inputs = weights.shape[1]
        order = torch.randperm(inputs, generator=torch.Generator().manual_seed(3)) if ordered else torch.arange(inputs)
        found, scale, zero = codes(weights[:, order], bits, group, symmetric=symmetric, scales=torch.float16)
        of_input = torch.empty(inputs, dtype=torch.int32)
        of_input[order] = torch.arange(inputs, dtype=torch.int32) // group
        back = torch.empty_like(found)
        back[:, order] = found
        meant = (back - zero[:, of_input.long()]).float() * scale.float()[:, of_input.long()]
        stored = (zero if second else zero - 1) & ((1 << bits) - 1)
        assert second or int(zero.min()) > 0 or bool((stored[zero == 0] == (1 << bits) - 1).all())
        meant = meant if second else (back - (stored + 1)[:, of_input.long()]).float() * scale.float()[:, of_input.long()]
        return {
            "qweight": packed(back, bits).t().contiguous(),
            "qzeros": packed(stored.t(), bits),
            "scales": scale.t().contiguous(),
            "g_idx": of_input,
        }, meant

    return made


def awq(group: int = 32) -> Callable[[torch.Tensor], Made]:
    """As AutoAWQ's gemm version writes it."""

    def made(weights: torch.Tensor) -> Made:
        found, scale, zero = codes(weights, 4, group, symmetric=False, scales=torch.float16)
        meant = (found - zero.repeat_interleave(group, 1)).float() * scale.float().repeat_interleave(group, 1)
        tensors = {"qweight": packed(found.t(), 4, AWQ_PLACES), "qzeros": packed(zero.t(), 4, AWQ_PLACES), "scales": scale.t().contiguous()}
        return tensors, meant

    return made


def pack_quantized(bits: int = 4, group: int = 32, *, symmetric: bool = True) -> Callable[[torch.Tensor], Made]:
    """compressed-tensors' pack-quantized; `group` 0: one scale for a row."""

    def made(weights: torch.Tensor) -> Made:
        size = group or weights.shape[1]
        found, scale, zero = codes(weights, bits, size, symmetric=symmetric, scales=torch.bfloat16)
        meant = (found - zero.repeat_interleave(size, 1)).float() * scale.float().repeat_interleave(size, 1)
        tensors = {"weight_packed": packed(found, bits), "weight_scale": scale, "weight_shape": torch.tensor(weights.shape)}
        return tensors | ({} if symmetric else {"weight_zero_point": packed(zero.t(), bits).t().contiguous()}), meant

    return made


def int_quantized(*, of_rows: bool = True) -> Callable[[torch.Tensor], Made]:
    """compressed-tensors' int-quantized (W8A8), a scale for each row or one for all."""

    def made(weights: torch.Tensor) -> Made:
        scale = (weights.abs().amax(1, keepdim=True) if of_rows else weights.abs().max().view(1)) / 127
        found = (weights / scale).round().clamp(-128, 127)
        tensors = {"weight": found.to(torch.int8), "weight_scale": scale, "input_scale": torch.tensor([0.02])}
        return tensors, found * scale

    return made


def float_quantized(block: int = 0) -> Callable[[torch.Tensor], Made]:
    """FP8, a scale for each row, or for blocks as transformers' fp8 has them."""

    def made(weights: torch.Tensor) -> Made:
        if not block:
            scale = weights.abs().amax(1, keepdim=True) / 448
            found = (weights / scale).to(torch.float8_e4m3fn)
            return {"weight": found, "weight_scale": scale}, found.float() * scale
        high, wide = (-(-size // block) for size in weights.shape)
        scale = torch.rand(high, wide, generator=torch.Generator().manual_seed(1)) * 0.01 + 0.002
        spread = scale.repeat_interleave(block, 0)[: len(weights)].repeat_interleave(block, 1)[:, : weights.shape[1]]
        found = (weights / spread).to(torch.float8_e4m3fn)
        return {"weight": found, "weight_scale_inv": scale}, found.float() * spread

    return made


def _compressed(kind: str, bits: int, group: int, what: str = "int", *, symmetric: bool = True, activations: Any = None) -> dict[str, Any]:
    strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel", "group_size": None}
    weights = {"num_bits": bits, "type": what, "symmetric": symmetric, **strategy}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


CHECKPOINTS: Mapping[str, tuple[Mapping[str, Any], Callable[[torch.Tensor], Made]]] = {
    "GPTQ": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}, gptq()),
    "GPTQ, symmetric": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}, gptq(symmetric=True)),
    "GPTQ with act-order": ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True}, gptq(ordered=True)),
    "GPTQ, 8 bits": ({"quant_method": "gptq", "bits": 8, "group_size": 32, "desc_act": False}, gptq(8)),
    "GPTQ, second format": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq_v2"}, gptq(second=True),
    ),
    "GPTQ, groups of 16": ({"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False}, gptq(group=16)),
    "AWQ": ({"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}, awq()),
    "W4A16": (_compressed("pack-quantized", 4, 32), pack_quantized()),
    "W4A16 with zero points": (_compressed("pack-quantized", 4, 32, symmetric=False), pack_quantized(symmetric=False)),
    "W4A16 by rows": (_compressed("pack-quantized", 4, 0), pack_quantized(group=0)),
    "W8A16": (_compressed("pack-quantized", 8, 32), pack_quantized(8)),
    "W8A8": (_compressed("int-quantized", 8, 0, activations={"num_bits": 8, "type": "int", "dynamic": True}), int_quantized()),
    "W8A8, one scale": (_compressed("int-quantized", 8, 0), int_quantized(of_rows=False)),
    "FP8 by rows": (_compressed("float-quantized", 8, 0, "float"), float_quantized()),
    "FP8 in blocks": ({"quant_method": "fp8", "weight_block_size": [24, 24], "activation_scheme": "dynamic"}, float_quantized(24)),
}  # fmt: skip


def quantized(source: Path, folder: Path, name: str, *, key: str = "quantization_config") -> Path:
    """The model in `source` with its blocks' linear layers in this form, and as `meant.safetensors` elsewhere the weights that it means."""
    settings, made = CHECKPOINTS[name]
    tensors, meant = load_file(source / "model.safetensors"), load_file(source / "model.safetensors")
    for path in [name for name in tensors if name.endswith("_proj.weight")]:
        parts, meant[path] = made(tensors.pop(path).float())
        tensors |= {path.removesuffix("weight") + suffix: value for suffix, value in parts.items()}
    config = json.loads((source / "config.json").read_text())
    for made_folder, content, more in ((folder, tensors, {key: settings}), (folder / "meant", meant, {})):
        made_folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in content.items()}, made_folder / "model.safetensors", {"format": "pt"})
        (made_folder / "config.json").write_text(json.dumps(config | more))
    return folder
