"""The llama.cpp engine in Triton: loads it, and moves bytes as numpy's arrays, which are right for bytes with any numpy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from splitinference_segment.llamacpp.engine import LlamaEngine
from splitinference_segment.meters import Meters
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings


@dataclass(frozen=True, slots=True)
class Loaded:
    """Layers in memory: of how many the model has, in words, and how their segment is started."""

    count: int
    description: str
    start: Callable[[Meters], Segment]


def load(settings: Settings) -> Loaded:
    """Load the layers. ModelRefusedError says why not."""
    engine = LlamaEngine(settings)
    return Loaded(engine.count, engine.description(), lambda meters: Segment(settings, engine, meters))


def read(request: Any, name: str) -> memoryview:
    """An input. A copy: the server's memory behind the request is gone once it is answered."""
    return memoryview(bytearray(pb_utils.get_input_tensor_by_name(request, name).as_numpy().tobytes()))


def write(name: str, content: bytes) -> Any:
    """An output."""
    return pb_utils.Tensor(name, np.frombuffer(content, np.uint8))
