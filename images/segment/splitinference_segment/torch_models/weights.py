"""Reading tensors by name from a folder of safetensors: only those asked for, cast to the serving dtype, in memory of our own."""

import contextlib
import fcntl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import safe_open
from torch import nn

from splitinference_modelfiles.digests import Digests
from splitinference_modelfiles.folder import tensor_tables
from splitinference_modelfiles.headers import ModelRefusedError
from splitinference_modelfiles.quantization import FLOATS
from splitinference_segment.torch_models.content import check, check_config, copied

_used: list[BinaryIO] = []
"""Weight files that this process loaded from: while it lives, the node's model cache keeps them, as it may have to load again."""


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
        except ModelRefusedError as error:
            raise MissingWeightsError(f"{folder}: {error}") from error
        if not self._file_of:
            raise MissingWeightsError(f"{folder} holds no *.safetensors")

    def stored_name(self, name: str, base_prefix: str) -> str | None:
        """The name under which `name` is stored; some checkpoints leave out the base model's prefix (GPT-2's does)."""
        for candidate in (name, name.removeprefix(f"{base_prefix}."), f"{base_prefix}.{name}"):
            if candidate in self._file_of:
                return candidate
        return None

    def read(self, names: Iterable[str], dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """Read tensors by stored name. They are copies, so that serving never waits for the page cache. MismatchError where one is not what
        its digest says."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            if name not in self._table:
                raise MissingWeightsError(f"{self._folder} does not have {self._file_of[name]}, which holds {name}")
            if self._table[name].dtype not in FLOATS | {"I64"}:  # a cast would lose the scales of a quantized weight
                raise MissingWeightsError(f"tensor {name} is stored as {self._table[name].dtype}; served are {', '.join(sorted(FLOATS))}")
            by_file.setdefault(self._file_of[name], []).append(name)
        tensors: dict[str, torch.Tensor] = {}
        found: dict[str, str] = {}
        for file, stored_names in by_file.items():
            _keep(self._folder / file)
            with safe_open(str(self._folder / file), framework="pt") as stored:
                for name in stored_names:
                    tensor = stored.get_tensor(name)
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    tensors[name] = torch.empty(tensor.shape, dtype=kind, device=device)
                    if self._digests is None:
                        tensors[name].copy_(tensor)
                    else:
                        found[name] = copied(name, self._table[name], tensor, tensors[name])
        if self._digests is not None:
            check(found, self._table, self._digests, self._digest_of)
        return tensors

    def _digest_of(self, name: str) -> str:
        with safe_open(str(self._folder / self._file_of[name]), framework="pt") as stored:
            return copied(name, self._table[name], stored.get_tensor(name), None)


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
) -> None:
    """Give modules on the meta device, by path, their stored tensors. `ties`: names under which a tied weight may be stored, best first.

    A name that is stored once is read once: a tied head and embedding in one segment share their memory. MissingWeightsError names what
    is not there.
    """
    stored: dict[str, str] = {}
    missing = []
    for path, module in own.items():
        for key in module.state_dict():
            name = f"{path}.{key}"
            candidates = [weights.stored_name(candidate, base_prefix) for candidate in ties.get(name, (name,))]
            found = next((candidate for candidate in candidates if candidate is not None), None)
            if found is None:
                missing.append(name)
            else:
                stored[name] = found
    if missing:
        raise MissingWeightsError(f"{len(missing)} tensors of {', '.join(own)} are not stored, first {missing[:3]}")
    tensors = weights.read(sorted(set(stored.values())), dtype, device)
    for path, module in own.items():
        module.load_state_dict({key: tensors[stored[f"{path}.{key}"]] for key in module.state_dict()}, assign=True)
        module.requires_grad_(False)
