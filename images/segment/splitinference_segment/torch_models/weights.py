"""Reading tensors by name from a folder of safetensors: only those asked for, cast to the serving dtype, in memory of our own."""

import contextlib
import fcntl
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import nn

from splitinference_modelfiles.checkpoints import FP8, Stored, read_checkpoint
from splitinference_modelfiles.held import ROWS
from splitinference_modelfiles.models import FORMER_NAMES
from splitinference_modelfiles.quantization import FLOATS
from splitinference_modelfiles.rules.experts import ExpertForm, parts_of
from splitinference_modelfiles.stored.digests import Digests, started
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.torch_models.content import check, check_config, copied, feed
from splitinference_segment.torch_models.encrypted.sealed import open_tensors
from splitinference_segment.torch_models.unpacking import UnequalGroupsError, codes_of, order_of, weights_of
from splitinference_segment.torch_ops.quantized import Matrix

_used: list[BinaryIO] = []
"""Weight files that this process loaded from: while it lives, the node's model cache keeps them, as it may have to load again."""


_AT_ONCE = 1 << 20
"""Weights that are converted at a time: what they need besides is some dozens of megabytes."""


class MissingWeightsError(Exception):
    """The folder does not hold a tensor that the layers need; the message names the first few."""


class Weights:
    """The tensor table of a model's folder: which file holds which name."""

    def __init__(self, folder: Path, digests: Digests | None = None) -> None:
        """Read the index and the headers of the files that are here, by the rules that the planner reads them by. `digests`: what is read
        must be what they say."""
        self._folder = folder
        self._digests = digests
        if digests is not None:
            check_config(folder, digests)
        try:
            self._file_of, self._table = tensor_tables(str(folder), partial=True)
            known = {name: self._table.get(name) for name in self._file_of}
            checkpoint = read_checkpoint(read_json(str(folder), CONFIG), known, file_names(str(folder)))
            self._names, self._quantized = checkpoint.tensors, checkpoint.quantized
        except ModelRefusedError as error:
            raise MissingWeightsError(f"{folder}: {error}") from error
        if not self._file_of:
            raise MissingWeightsError(f"{folder} holds no *.safetensors")

    def stored_name(self, name: str, base_prefix: str) -> str | None:
        """The name under which `name` is stored; some checkpoints leave out the base model's prefix (GPT-2's does)."""
        for current in (name, *former_names(name)):
            for candidate in (current, current.removeprefix(f"{base_prefix}."), f"{base_prefix}.{current}"):
                if candidate in self._names:
                    return candidate
        return None

    def is_quantized(self, name: str) -> bool:
        """Whether the weight of this stored name is in codes, or in FP8."""
        return name in self._quantized

    def read(
        self, names: Sequence[str], dtype: torch.dtype, device: torch.device, places: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """Read tensors by stored name, those of `places` into this memory, others into memory of their own. They are copies: serving
        never waits for the page cache. Quantized weights become the numbers that they stand for. MismatchError where one is not what its
        digest says."""
        plain = [name for name in names if name not in self._quantized]
        tensors = self._read(plain, dtype, device, places or {})
        for name in names:
            if (stored := self._quantized.get(name)) is not None:
                place = (places or {}).get(name)
                tensors[name] = torch.empty((stored.rows, stored.columns), dtype=dtype, device=device) if place is None else place
                if tensors[name].shape != (stored.rows, stored.columns):
                    expected = list(tensors[name].shape)
                    raise MissingWeightsError(f"tensor {name} has shape {[stored.rows, stored.columns]}, expected {expected}")
                parts, order = self._parts(name, stored)
                for first, last in _rows_at_once(stored.rows, stored.columns):
                    tensors[name][first:last] = weights_of(stored, parts, order, first, last)
        return tensors

    def fill_matrix(self, name: str, matrix: Matrix, *, transposed: bool = False) -> None:
        """Give a matrix its codes, from the weight of this stored name: those that are stored, or the nearest to what is stored.
        `transposed`: it is stored [columns, rows]. Little memory is needed besides."""
        if (stored := self._quantized.get(name)) is None:
            self._quantize(name, matrix, transposed=transposed)
            return
        if stored.kind == FP8 or (stored.rows, stored.columns) != (matrix.rows, matrix.columns):
            raise MissingWeightsError(f"tensor {name} has shape {[stored.rows, stored.columns]}, expected {[matrix.rows, matrix.columns]}")
        parts, matrix.order = self._parts(name, stored)
        for first, last in _rows_at_once(stored.rows, stored.columns):
            codes, scale, zero = codes_of(stored, parts, matrix.order, first, last)
            times = stored.group // matrix.form.group
            matrix.put(first, codes, scale.repeat_interleave(times, 1), zero.repeat_interleave(times, 1))

    def _parts(self, name: str, stored: Stored) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        found = self._read(list(stored.parts.values()), None, torch.device("cpu"), {})
        parts = {what: found[part] for what, part in stored.parts.items()}
        try:
            return parts, order_of(stored, parts)
        except UnequalGroupsError as error:
            raise MissingWeightsError(f"tensor {name}: {error}") from error

    def _quantize(self, name: str, matrix: Matrix, *, transposed: bool) -> None:
        self._check_here([name])
        _keep(self._folder / self._file_of[name])
        with open_tensors(str(self._folder / self._file_of[name])) as file:
            stored, info = file.get_tensor(name), self._table[name]
            digest = started(name, info.dtype, info.shape)
            if transposed:
                stored = stored.clone()
                feed(digest, stored)
            for first, last in _rows_at_once(matrix.rows, matrix.columns):
                if transposed:
                    matrix.quantize(first, stored[:, first:last].t().contiguous().to(matrix.codes.device))
                else:
                    piece = stored[first:last].clone()
                    feed(digest, piece)
                    matrix.quantize(first, piece.to(matrix.codes.device))
        if self._digests is not None:
            check({name: str(digest.hexdigest())}, self._table, self._digests, self._digest_of)

    def _check_here(self, names: Iterable[str], *, raw: bool = False) -> None:
        for name in names:
            if name not in self._table:
                raise MissingWeightsError(f"{self._folder} does not have {self._file_of[name]}, which holds {name}")
            if not raw and self._table[name].dtype not in FLOATS | {"I64"}:  # a cast would lose the scales of a quantized weight
                raise MissingWeightsError(f"tensor {name} is stored as {self._table[name].dtype}; served are {', '.join(sorted(FLOATS))}")

    def _read(
        self, names: Sequence[str], dtype: torch.dtype | None, device: torch.device, places: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """`dtype` None: as they are stored."""
        self._check_here(names, raw=dtype is None)
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self._file_of[name], []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        found: dict[str, str] = {}
        for file, stored_names in by_file.items():
            _keep(self._folder / file)
            with open_tensors(str(self._folder / file)) as stored:
                for name in stored_names:
                    tensor = stored.get_tensor(name)
                    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    place = places.get(name)
                    if place is not None and place.shape != tensor.shape:
                        raise MissingWeightsError(f"tensor {name} has shape {list(tensor.shape)}, expected {list(place.shape)}")
                    tensors[name] = torch.empty(tensor.shape, dtype=kind, device=device) if place is None else place
                    if self._digests is None:
                        tensors[name].copy_(tensor)
                    else:
                        found[name] = copied(name, self._table[name], tensor, tensors[name])
        if self._digests is not None:
            check(found, self._table, self._digests, self._digest_of)
        return tensors

    def _digest_of(self, name: str) -> str:
        with open_tensors(str(self._folder / self._file_of[name])) as stored:
            return copied(name, self._table[name], stored.get_tensor(name), None)


def former_names(name: str) -> list[str]:
    """Names that older checkpoints give the tensor."""
    return [name.removesuffix(now) + former for former, now in FORMER_NAMES if name.endswith(now)]


def _rows_at_once(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = ROWS * max(1, _AT_ONCE // (ROWS * columns))
    return ((first, min(rows, first + step)) for first in range(0, rows, step))


def _place(expert: torch.Tensor, half: int | None) -> torch.Tensor:
    return expert if half is None else expert.chunk(2)[half]


def _keep(path: Path) -> None:
    """Hold a shared lock on the file. Whoever makes room in the cache takes files without one."""
    with contextlib.suppress(OSError):  # a file system without locks has no cache either
        file = path.open("rb")
        _used.append(file)
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def fill(
    own: Mapping[str, nn.Module],
    weights: Weights,
    base_prefix: str,
    ties: Mapping[str, tuple[str, ...]],
    *,
    dtype: torch.dtype,
    device: torch.device,
    experts: ExpertForm | None = None,
) -> None:
    """Give modules on the meta device, by path, their stored tensors. `ties`: names under which a tied weight may be stored, best first.
    `experts`: how the family stores the experts that a module has as one tensor.

    A name that is stored once is read once: a tied head and embedding in one segment share their memory. MissingWeightsError names what
    is not there.
    """
    stored: dict[str, str] = {}
    missing: list[str] = []
    joined: dict[str, torch.Tensor] = {}
    places: dict[str, torch.Tensor] = {}
    for name, empty in ((f"{path}.{key}", empty) for path, module in own.items() for key, empty in module.state_dict().items()):
        as_stored, parts = parts_of(name, experts, len(empty)) if experts is not None else (name, ())
        if parts:
            joined[name] = torch.empty(empty.shape, dtype=dtype, device=device)
            parted = {weights.stored_name(part.name, base_prefix): part for part in parts}
            places |= {found: _place(joined[name][part.expert], part.half) for found, part in parted.items() if found is not None}
            missing += [part.name for found, part in parted.items() if found is None]
            continue
        candidates = [weights.stored_name(candidate, base_prefix) for candidate in ties.get(as_stored, (as_stored,))]
        found = next((candidate for candidate in candidates if candidate is not None), None)
        if found is None:
            missing.append(as_stored)
        else:
            stored[name] = found
    if missing:
        raise MissingWeightsError(f"{len(missing)} tensors of {', '.join(own)} are not stored, first {missing[:3]}")
    tensors = weights.read(sorted({*stored.values(), *places}), dtype, device, places)
    whole = {name: tensors[found] for name, found in stored.items()} | joined
    for path, module in own.items():
        module.load_state_dict({key: whole[f"{path}.{key}"] for key in module.state_dict()}, assign=True)
        module.requires_grad_(False)
