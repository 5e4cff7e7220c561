"""The llama.cpp engine in Triton: loads it, and moves bytes by DLPack.

numpy's own arrays come out wrong under numpy 2 in this backend, without an error.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from splitinference_segment.llamacpp.engine import LlamaEngine
from splitinference_segment.meters import Meters
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings

_USED = b"used_dltensor"
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.argtypes, _rename.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int


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


class _Capsule:
    """What numpy wants around a DLPack capsule of the processor's memory."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def read(request: Any, name: str) -> memoryview:
    """An input. A copy: the server's memory behind the request is gone once it is answered."""
    array = np.from_dlpack(_Capsule(pb_utils.get_input_tensor_by_name(request, name).to_dlpack()))
    return memoryview(bytearray(array.tobytes()))


def write(name: str, content: bytes) -> Any:
    """An output. DLPack hands over no array that may not be written.

    The backend marks a capsule as used by another name than numpy looks for, which then complains when the capsule goes.
    """
    capsule = np.frombuffer(bytearray(content), np.uint8).__dlpack__()
    made = pb_utils.Tensor.from_dlpack(name, _Capsule(capsule))
    _rename(capsule, _USED)
    return made
