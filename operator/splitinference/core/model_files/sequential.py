"""Layers of a generic chain: what each of torch's own layers costs for one row, from its parameters and the shape that reaches it.

A row is what the cost model calls a token: a request of `promptTokens` rows.
"""

import math
from collections.abc import Mapping
from typing import Any

from splitinference.core.model_files.safetensors import elements, matrix_elements
from splitinference.core.values.profile import Layer, LayerKind
from splitinference_modelfiles.chains import layers_of
from splitinference_modelfiles.stored.headers import TensorInfo


def sequential_layers(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], size: int) -> list[Layer]:
    """Every layer of the chain may be cut before; `size` is bytes per element."""
    given = layers_of(config)
    layers = []
    for index, layer in enumerate(given):
        own = [tensors[f"{index}.{name}"] for name in layer.tensors]
        matrices = matrix_elements(own)
        places = math.prod(layer.after[1:]) if layer.kind.startswith("Conv") else math.prod(layer.after[:-1])
        layers.append(
            Layer(
                index=index,
                name=f"{index} {layer.kind}",
                kind=LayerKind.GENERIC,
                weight_bytes=elements(own) * size,
                flops_per_token=2.0 * matrices * places if matrices else float(math.prod(layer.before)),
                boundary_bytes_per_token=math.prod(layer.after) * (4 if index == len(given) - 1 else size),
            )
        )
    return layers
