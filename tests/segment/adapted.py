"""A model in segments that hold adapters, and what its rows give."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from splitinference_modelfiles.held import AS_STORED
from splitinference_protocol.wire.request import Request
from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.engine import Work
from splitinference_segment.programs.load_adapter import read_adapter
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.torch_engine import TorchEngine

PROMPT = [5, 99, 17, 3, 150, 42, 42, 8, 201, 77]
NEXT = [31, 8, 140]
PIECES = [PROMPT, *([token] for token in NEXT)]
ATTENTION = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BUDGET = 4 << 20


class Split:
    """A model in segments, each with its part of adapters."""

    def __init__(self, folder: Path, cuts: Sequence[int], dtype: torch.dtype = torch.float32, weights: str = AS_STORED) -> None:
        parts = [Layers(folder, start, end, dtype, weights=weights) for start, end in itertools.pairwise(cuts)]
        self.engines = [TorchEngine(part, adapter_bytes=BUDGET) for part in parts]

    def load(self, folder: Path) -> str:
        adapter = read_adapter(folder, self.engines[-1].count - 2)
        for engine in self.engines:
            engine.adapters.load(adapter.digest, adapter.part(max(engine.start, 1) - 1, engine.end - 1))
        return adapter.digest

    def logits(self, digests: Sequence[str], pieces: Sequence[Sequence[int]]) -> torch.Tensor:
        """Of sequences that take all steps together, each with its adapter (empty: none); after the last piece."""
        held = [[KvEntry(f"s{i}", engine.kv_shape.allocate(64)) for i in range(len(digests))] for engine in self.engines]
        position = 0
        for piece in pieces:
            values = [torch.tensor(list(piece))] * len(digests)
            request = Request("step", "s", position, sample=True, logits=True)
            for engine, entries in zip(self.engines, held, strict=True):
                batch = [
                    Work(request, given, entry, engine.adapters.get(digest) if digest else None)
                    for given, entry, digest in zip(values, entries, digests, strict=True)
                ]
                outputs = engine.run(batch)
                values = [out.logits if out.hidden is None else out.hidden for out in outputs]
            position += len(piece)
        return torch.stack(values).float()


def unsplit(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([PROMPT + NEXT])).logits[0, -1]
