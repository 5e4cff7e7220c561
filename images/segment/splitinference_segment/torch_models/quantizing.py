"""Linear layers and embeddings whose matrices are held in codes take the place of a model's own modules."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from splitinference_modelfiles.held import Held
from splitinference_segment.torch_models.weights import MissingWeightsError, Weights
from splitinference_segment.torch_ops.quantized import Matrix, QuantizedEmbedding, QuantizedLinear


def take_codes(
    own: Mapping[str, nn.Module],
    weights: Weights,
    base_prefix: str,
    ties: Mapping[str, tuple[str, ...]],
    held: Mapping[str, Held],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, nn.Module]:
    """Modules on the meta device, by path → the same with those replaced whose matrix is held in codes, and these filled. Biases are left
    for `fill`. `ties`: names under which a tied weight may be stored, best first; what is stored once is held once."""
    made: dict[str, Matrix] = {}

    def replaced(path: str, module: nn.Module) -> nn.Module:
        if isinstance(module, nn.Linear | nn.Embedding | Conv1D):
            matrix = _matrix(f"{path}.weight", transposed=isinstance(module, Conv1D))
            return module if matrix is None else _in_place_of(module, matrix)
        for name, child in list(module.named_children()):
            if (new := replaced(f"{path}.{name}", child)) is not child:
                setattr(module, name, new)
        return module

    def _matrix(name: str, *, transposed: bool) -> Matrix | None:
        for candidate in ties.get(name, (name,)):
            if (stored := weights.stored_name(candidate, base_prefix)) is None:
                continue
            if (form := held.get(candidate)) is None:
                return None
            if stored not in made:
                made[stored] = Matrix(form.rows, form.columns, form.form, dtype, device)
                weights.fill_matrix(stored, made[stored], transposed=transposed)
            return made[stored]
        raise MissingWeightsError(f"tensor {name} is not stored")

    return {path: replaced(path, module) for path, module in own.items()}


def _in_place_of(module: Any, matrix: Matrix) -> nn.Module:
    if isinstance(module, nn.Embedding):
        scale = getattr(module, "scalar_embed_scale", None)  # Gemma's
        return QuantizedEmbedding(matrix, None if scale is None else torch.tensor(scale, device=matrix.codes.device))
    return QuantizedLinear(matrix, module.bias)
