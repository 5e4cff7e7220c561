"""Models whose weights are held in codes: their logits, and transformers' own model with the numbers that the codes stand for."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.quantized import Matrix
from splitinference_segment.torch_ops.spans import Span

CPU = torch.device("cpu")


def meant(matrix: Matrix) -> torch.Tensor:
    return matrix.lookup(torch.arange(matrix.rows)).float()


def run(parts: Sequence[Layers], ids: Sequence[int]) -> torch.Tensor:
    """Logits of every token."""
    values = torch.tensor(list(ids))
    with torch.inference_mode():
        for part in parts:
            values = part.run(values, [Span(KvEntry("s", part.kv_shape.allocate(32)), 0, len(ids), 0)])
        return parts[-1].logits(values)


def replaced(folder: Path, weights: str) -> nn.Module:
    """transformers' model with the numbers that the codes stand for in its own modules."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    held = accepted(folder, weights)[1].held
    for name, matrix in held.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        stored = module.weight.data.t() if isinstance(module, Conv1D) else module.weight.data
        made = Matrix(matrix.rows, matrix.columns, matrix.form, torch.float32, CPU)
        for first in range(0, matrix.rows, 64):
            made.quantize(first, stored[first : first + 64].contiguous())
        stored.copy_(meant(made))
    assert held
    return model
