"""Which layers a model's folder asks for: those of a decoder with KV, of an encoder, or of a generic chain."""

from pathlib import Path
from typing import TypeGuard

import torch

from splitinference_modelfiles.stored.digests import Digests
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.encoder import ENCODERS, EncoderLayers
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.sequential import MODEL_TYPE, SequentialLayers
from splitinference_segment.torch_models.stateless import Stateless


def load_layers(
    folder: Path, start: int, end: int, dtype: torch.dtype, *, device: str = "cpu", digests: Digests | None = None
) -> Layers | Stateless:
    """Layers [start, end) of the model in `folder`, which must be what `digests` say. UnsupportedModelError, MissingWeightsError or
    MismatchError say why not."""
    _, model = accepted(folder)  # before transformers is asked, which has no other families here
    kind = model.family
    if kind == MODEL_TYPE:
        return SequentialLayers(folder, start, end, dtype, device=device, digests=digests)
    if kind in ENCODERS:
        return EncoderLayers(folder, start, end, dtype, device=device, digests=digests)
    return Layers(folder, start, end, dtype, device=device, digests=digests)


def is_stateless(layers: Layers | Stateless) -> TypeGuard[Stateless]:
    """Whether these layers keep nothing between requests."""
    return not isinstance(layers, Layers)
