"""The torch engine in Triton: loads it, and moves bytes by DLPack.

Numpy arrays of other types than bytes come out wrong under numpy 2 in this backend, without an error; DLPack is right with any numpy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton_python_backend_utils as pb_utils

from splitinference_segment.meters import Meters
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings
from splitinference_segment.tensor_segment import TensorSegment
from splitinference_segment.torch_models.content import MismatchError, read_digests, tell
from splitinference_segment.torch_models.device import torch_device
from splitinference_segment.torch_models.encrypted.model_key import ModelKeyError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.loading import load_layers
from splitinference_segment.torch_models.torch_engine import TorchEngine


@dataclass(frozen=True, slots=True)
class Loaded:
    """Layers in memory: of how many the model has, in words, and how their segment is started."""

    count: int
    description: str
    start: Callable[[Meters], Segment]


def load(settings: Settings) -> Loaded:
    """Load the layers. MismatchError or ModelKeyError where they are not the model's or cannot be decrypted; the reason then stands where
    the kubelet reads it."""
    torch.set_num_threads(settings.threads)
    device = torch_device(settings.device)
    try:
        digests = read_digests(settings.digests_file, settings.model_digest) if settings.model_digest else None
        dtype = getattr(torch, settings.dtype)
        layers = load_layers(
            settings.model_path, settings.start, settings.end, dtype, device=device, digests=digests, weights=settings.model_weights
        )
    except (MismatchError, ModelKeyError) as error:
        tell(error)
        raise
    if not isinstance(layers, Layers):
        said = f"{layers.weight_bytes() / 2**20:.1f} MiB of weights, {layers.kv_shape.bytes_per_token} KV bytes per token, {device}"
        return Loaded(layers.count, said, lambda meters: TensorSegment(settings, layers, meters))
    engine = TorchEngine(layers, packed=settings.weights == "packed" and layers.pack(), adapter_bytes=settings.adapter_bytes)
    return Loaded(engine.count, engine.description(), lambda meters: Segment(settings, engine, meters))


def read(request: Any, name: str) -> memoryview:
    """An input. A copy: the server's memory behind the request is gone once it is answered."""
    tensor: torch.Tensor = torch.from_dlpack(pb_utils.get_input_tensor_by_name(request, name).to_dlpack())
    return memoryview(tensor.clone().numpy())


def write(name: str, content: bytes) -> Any:
    """An output."""
    return pb_utils.Tensor.from_dlpack(name, torch.frombuffer(bytearray(content), dtype=torch.uint8))
