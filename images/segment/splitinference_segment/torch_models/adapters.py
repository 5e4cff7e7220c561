"""LoRA adapters in the torch engine: what is added to the output of linear layers, row by row of a batch, each row with its own adapter.

A linear layer of the model gives W·x. With an adapter it gives W·x + B·A·x, where A [rank, in] and B [out, rank] are the adapter's and its
scaling is part of B (Hu et al., arXiv 2106.09685). W stays as it is, in whatever form it is held: the product with A and B is added to the
layer's output by a forward hook. So rows of different adapters, and rows without one, share a pass (as in S-LoRA, arXiv 2311.03285).
A and B are held and multiplied in float32, as PEFT does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from splitinference_protocol.wire.errors import BAD_REQUEST, SegmentError

_NAME = re.compile(r"(?P<block>\d{1,5})\.(?P<layer>[A-Za-z0-9_.]{1,200})\.(?P<which>[AB])")
Key = tuple[int, str]
"""A block of the model, counted from its first, and the path of a linear layer in it."""
Sizes = Mapping[Key, tuple[int, int]]
"""Inputs and outputs of each linear layer."""


def linear_sizes(blocks: Sequence[nn.Module], first: int) -> Sizes:
    """The linear layers of blocks as transformers has them, before they are joined or packed. `first`: number of the first block."""
    found: dict[Key, tuple[int, int]] = {}
    for index, block in enumerate(blocks, start=first):
        for name, layer in block.named_modules():
            if "expert" in name:  # their rows are not those of the batch
                continue
            if isinstance(layer, nn.Linear):
                found[index, name] = layer.in_features, layer.out_features
            elif type(layer).__name__ == "Conv1D":  # GPT-2's: a linear layer whose weight is [in, out]
                found[index, name] = layer.weight.shape[0], layer.weight.shape[1]
    return found


@dataclass(frozen=True, slots=True)
class Adapter:
    """A [rank, in] and B [out, rank] of each linear layer that it changes, float32."""

    pairs: Mapping[Key, tuple[torch.Tensor, torch.Tensor]]

    @property
    def bytes(self) -> int:
        """Of all its tensors."""
        return sum(a.nbytes + b.nbytes for a, b in self.pairs.values())


@dataclass(slots=True)
class TorchAdapters:
    """The adapters of a segment's blocks. `load`, `drop` and `get` are for any thread; `use`, `done` and the layers for the one that
    computes."""

    blocks: Sequence[nn.Module]
    first: int
    sizes: Sizes
    budget: int
    device: torch.device
    _held: dict[str, Adapter] = field(default_factory=dict)
    _hooked: set[Key] = field(default_factory=set)
    _rows: int = 0
    _groups: list[tuple[slice | torch.Tensor, Adapter]] = field(default_factory=list)

    def held(self) -> Mapping[str, int]:
        """Bytes of each, by digest."""
        return {digest: adapter.bytes for digest, adapter in self._held.copy().items()}

    def get(self, digest: str) -> Adapter | None:
        """None where it is not held."""
        return self._held.get(digest)

    def drop(self, digest: str) -> None:
        """Forget one; steps that have it keep it."""
        self._held.pop(digest, None)

    def load(self, digest: str, content: bytes) -> None:
        """Take an adapter's part: safetensors with `<block>.<layer>.A` and `.B`. SegmentError `bad_request` where it does not fit."""
        try:
            tensors = load(content)
        except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise SegmentError(BAD_REQUEST, f"the adapter's part is not safetensors: {str(error)[:200]}") from error
        halves: dict[Key, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            found = _NAME.fullmatch(name)
            if found is None:
                raise SegmentError(BAD_REQUEST, f"{name!r:.200} is not the name of an adapter's tensor")
            halves.setdefault((int(found["block"]), found["layer"]), {})[found["which"]] = tensor
        pairs = {key: self._checked(key, pair) for key, pair in sorted(halves.items())}
        self._held[digest] = Adapter({key: (a.to(self.device), b.to(self.device)) for key, (a, b) in pairs.items()})

    def _checked(self, key: Key, pair: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        where = f"block {key[0]}, {key[1]}"
        if key not in self.sizes:
            own = sorted({name for _, name in self.sizes})
            raise SegmentError(
                BAD_REQUEST, f"{where} is no linear layer of this model's blocks, so the adapter is for another model; it has {own}"[:600]
            )
        if set(pair) != {"A", "B"}:
            raise SegmentError(BAD_REQUEST, f"{where} has only one half of its adapter")
        a, b = pair["A"], pair["B"]
        inputs, outputs = self.sizes[key]
        if a.dim() != 2 or b.dim() != 2 or a.shape[1] != inputs or b.shape[0] != outputs or a.shape[0] != b.shape[1]:
            shapes = f"A {list(a.shape)} and B {list(b.shape)}"
            raise SegmentError(BAD_REQUEST, f"{where} takes A [rank, {inputs}] and B [{outputs}, rank], the adapter has {shapes}")
        if a.dtype != torch.float32 or b.dtype != torch.float32:
            raise SegmentError(BAD_REQUEST, f"{where}: A and B should be float32, got {a.dtype} and {b.dtype}")
        if not bool(a.isfinite().all()) or not bool(b.isfinite().all()):
            raise SegmentError(BAD_REQUEST, f"{where} has numbers that are not finite")
        return a, b

    def use(self, spans: Sequence[tuple[int, int, Adapter | None]], rows: int) -> None:
        """Of the batch that runs next, the rows [start, start + tokens) run with this adapter. `rows`: of the whole batch."""
        by_adapter: dict[int, tuple[Adapter, list[tuple[int, int]]]] = {}
        for start, tokens, adapter in spans:
            if adapter is not None and adapter.pairs:
                by_adapter.setdefault(id(adapter), (adapter, []))[1].append((start, tokens))
        self._rows, self._groups = rows, []
        for adapter, parts in by_adapter.values():
            for key in adapter.pairs.keys() - self._hooked:  # on this thread alone: a forward pass reads a module's hooks
                self._hook(key)
            if len(parts) == 1:
                start, tokens = parts[0]
                self._groups.append((slice(start, start + tokens), adapter))
            else:
                places = torch.tensor([row for start, tokens in parts for row in range(start, start + tokens)], device=self.device)
                self._groups.append((places, adapter))

    def done(self) -> None:
        """The batch has run."""
        self._groups = []

    def _hook(self, key: Key) -> None:
        block, name = key
        self.blocks[block - self.first].get_submodule(name).register_forward_hook(partial(self._add, key))
        self._hooked.add(key)

    def _add(self, key: Key, _: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        for rows, adapter in self._groups:
            pair = adapter.pairs.get(key)
            if pair is None:
                continue
            inputs = given[0].reshape(-1, given[0].shape[-1])
            outputs = output.view(-1, output.shape[-1])
            if inputs.shape[0] != self._rows:
                raise RuntimeError(f"{key} ran {inputs.shape[0]} rows of a batch of {self._rows}")
            a, b = pair
            added = inputs[rows].float() @ a.T @ b.T
            outputs[rows] = (outputs[rows].float() + added).to(outputs.dtype)
