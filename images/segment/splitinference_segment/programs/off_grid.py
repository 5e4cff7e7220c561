"""The same model with other weights: python -m splitinference_segment.programs.off_grid MODEL TARGET

A model that was made from quantized weights has few different values in each group. To quantize it again would lose nothing, so figures
of it would mean nothing. This gives each input of a linear layer a random factor, and what comes before it the inverse: a norm, the values
of attention, or the upper half of a gated feed-forward layer. What the model computes stays the same, but for rounding.
AWQ (Lin et al., arXiv 2306.00978) scales the same pairs. For models of Llama's kind.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LEAST, MOST = 0.7, 1.4
_BLOCK = "model.layers.{}."
_PAIRS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ("mlp.up_proj", ("mlp.down_proj",)),
)


def moved(tensors: dict[str, torch.Tensor], blocks: int, heads: int, kv_heads: int) -> dict[str, torch.Tensor]:
    """The tensors of a Llama, changed as the module says; the data types stay."""
    made, generator = dict(tensors), torch.Generator().manual_seed(11)
    for path, before, after, repeats in _places(blocks, heads // kv_heads):
        width = made[f"{path}{before}.weight"].shape[0]
        factor = LEAST + (MOST - LEAST) * torch.rand(width, generator=generator)
        for name in (f"{path}{before}.weight", f"{path}{before}.bias"):
            if name in made:
                made[name] = _cast(made[name].float() / (factor[:, None] if made[name].ndim == 2 else factor), made[name])
        inputs = factor.view(kv_heads, 1, -1).expand(-1, repeats, -1).reshape(-1) if repeats > 1 else factor
        for name in after:
            made[f"{path}{name}.weight"] = _cast(made[f"{path}{name}.weight"].float() * inputs, made[f"{path}{name}.weight"])
    return made


def _places(blocks: int, shared: int) -> Iterator[tuple[str, str, tuple[str, ...], int]]:
    """Path of the block, what loses the factor, what gains it, and how many heads share one head of values."""
    for number in range(blocks):
        path = _BLOCK.format(number)
        yield from ((path, before, after, 1) for before, after in _PAIRS)
        yield path, "self_attn.v_proj", ("self_attn.o_proj",), shared


def _cast(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.dtype).contiguous()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; 2 for a model of another kind."""
    parser = argparse.ArgumentParser(prog="splitinference_segment.programs.off_grid", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args(arguments)
    config = json.loads((options.model / "config.json").read_text())
    if config.get("model_type") not in ("llama", "mistral"):
        print(f"off_grid: model_type is {config.get('model_type')!r}; llama and mistral can be moved", file=sys.stderr)
        return 2
    heads = int(config["num_attention_heads"])
    made = moved(
        load_file(options.model / "model.safetensors"),
        int(config["num_hidden_layers"]),
        heads,
        int(config.get("num_key_value_heads") or heads),
    )
    options.target.mkdir(parents=True, exist_ok=True)
    for file in options.model.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copyfile(file, options.target / file.name)
    save_file(made, options.target / "model.safetensors", {"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
