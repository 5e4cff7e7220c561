"""Generic chains: torch's own Sequential, cut anywhere, gives the same numbers; what is no plain layer is refused."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import TensorMeta
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.sequential import SequentialLayers, build

LAYERS: list[dict[str, Any]] = [
    {"type": "Conv2d", "in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 1},
    {"type": "BatchNorm2d", "num_features": 4},
    {"type": "ReLU"},
    {"type": "MaxPool2d", "kernel_size": 2},
    {"type": "Flatten"},
    {"type": "Linear", "in_features": 64, "out_features": 16},
    {"type": "LayerNorm", "normalized_shape": 16},
    {"type": "GELU"},
    {"type": "Linear", "in_features": 16, "out_features": 3},
    {"type": "Softmax", "dim": -1},
]
CONFIG = {"model_type": "sequential", "input": {"name": "image", "shape": [2, 8, 8]}, "output": {"name": "scores"}, "layers": LAYERS}


def written(folder: Path) -> nn.Sequential:
    torch.manual_seed(7)
    model = nn.Sequential(*build(CONFIG)).eval()
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(model.state_dict(), str(folder / "model.safetensors"))
    return model


def split(folder: Path, cuts: Sequence[int], values: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        for start, end in itertools.pairwise(cuts):
            layers = SequentialLayers(folder, start, end, torch.float32)
            values = layers.values(TensorMeta("float32", tuple(values.shape)), values.contiguous().view(-1).view(torch.uint8), 1)
            values = layers.run(values)
        return layers.outputs(values)["scores"]


def test_every_split_point_gives_the_whole_chains_numbers(tmp_path: Path) -> None:
    model, rows = written(tmp_path), torch.randn(5, 2, 8, 8)
    with torch.inference_mode():
        expected = model(rows)
    for cuts in ([0, 10], *([0, cut, 10] for cut in range(1, 10)), range(11)):
        assert torch.equal(split(tmp_path, list(cuts), rows), expected), cuts


def test_a_probe_is_one_row_of_what_the_first_layer_takes(tmp_path: Path) -> None:
    written(tmp_path)
    assert SequentialLayers(tmp_path, 0, 3, torch.float32).example().shape == (1, 2, 8, 8)
    assert SequentialLayers(tmp_path, 3, 6, torch.float32).example().shape == (1, 4, 8, 8)


def test_a_tensor_of_another_shape_is_refused_with_what_is_taken(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(SegmentError, match=r"layers 0:2 take float32 \[rows, 2, 8, 8\], got float32 \[1, 2, 8\]"):
        SequentialLayers(tmp_path, 0, 2, torch.float32).values(TensorMeta("float32", (1, 2, 8)), torch.zeros(64, dtype=torch.uint8), 1)


@pytest.mark.parametrize(
    ("layer", "said"),
    [({"type": "Module"}, r"layers\[0\]\.type 'Module'"), ({}, "None"), ({"type": "Linear", "in": 3}, r"layers\[0\] \(Linear\)")],
)
def test_a_layer_that_is_not_known_is_named(layer: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        build({"layers": [layer]})
