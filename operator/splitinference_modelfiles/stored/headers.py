"""Tensor tables of safetensors files, and which of a folder's files hold a model's weights. Pure; its text also runs in reading pods."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ADAPTER = "adapter_model.safetensors"
SUFFIX = ".safetensors"
HEADER_LIMIT = 32 * 2**20
"""Bytes of one file's table. The largest known tables have a third of this."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


class ModelRefusedError(ValueError):
    """The model cannot be served; the message names the file or the setting, and the reason."""


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype as stored (`F32`, `BF16`, ...), its shape, its bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


def header_length(first_eight: bytes, file: str) -> int:
    """Bytes of the table after the first eight of the file. ModelRefusedError where they are no start of a safetensors file."""
    length = int.from_bytes(first_eight[:8], "little")
    if len(first_eight) < 8 or not 0 < length <= HEADER_LIMIT:
        raise ModelRefusedError(f"{file} is not a safetensors file: its header would be {length} bytes long")
    return length


def parse_header(header: bytes, file: str, size: int | None) -> dict[str, TensorInfo]:
    """The table of `file`, which has `size` bytes (None: not known). `header` is what follows the first eight bytes.

    The conditions are those of the safetensors library: tensors lie one after another without gaps and end where the file ends.
    """
    try:
        entries = json.loads(header, object_pairs_hook=lambda pairs: _once(pairs, file))
        table = {str(name): _tensor(entry) for name, entry in entries.items() if name != "__metadata__"}
    except ModelRefusedError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefusedError(f"{file} has a damaged tensor table") from error
    end = 0
    for name, (begin, after, info) in sorted(table.items(), key=lambda item: item[1][:2]):
        if info.dtype not in DTYPE_BITS:
            raise ModelRefusedError(f"{file}: tensor {name} has the unknown data type {info.dtype[:20]!r}")
        needed = info.elements * DTYPE_BITS[info.dtype] // 8
        if begin != end or info.bytes != needed:
            raise ModelRefusedError(
                f"{file}: tensor {name} of shape {list(info.shape)} and data type {info.dtype} needs bytes {end} to {end + needed}, "
                f"its table says {begin} to {after}"
            )
        end = after
    whole = 8 + len(header) + end
    if size is not None and size < whole:
        raise ModelRefusedError(f"{file} is cut short: it has {size} bytes, its header speaks of {whole}")
    if size is not None and size > whole:
        raise ModelRefusedError(f"{file} has {size} bytes, its header speaks of {whole}: {size - whole} bytes belong to no tensor")
    return {name: info for name, (_, _, info) in table.items()}


def weight_files(names: Iterable[str]) -> list[str]:
    """The weight files of a folder with these names that has no index: `model.safetensors` alone where it is there, else all of them."""
    found = sorted(name for name in names if name.endswith(SUFFIX) and "/" not in name)
    if SINGLE in found:
        return [SINGLE]
    if found == [ADAPTER]:
        raise ModelRefusedError(f"{ADAPTER} is an adapter, not a model: merge it into its base model first")
    rest = [name for name in found if not name.startswith(("consolidated", "adapter_model"))]
    if found and not rest:
        raise ModelRefusedError(f"{found[0]} has its publisher's own tensor names; expected {SINGLE} or {INDEX} beside it")
    return rest


def parse_index(data: bytes | str) -> dict[str, str]:
    """Tensor → file, as the index says. What lies beside those files is not the model's."""
    try:
        content = json.loads(data, object_pairs_hook=lambda pairs: _once(pairs, INDEX))
    except ModelRefusedError:
        raise
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"{INDEX} is not JSON: {str(error)[:100]}") from error
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise ModelRefusedError(f"{INDEX} has no weight_map")
    for tensor, file in found.items():
        if not isinstance(file, str) or "/" in file or "\\" in file or not file.endswith(SUFFIX) or file == SUFFIX:
            raise ModelRefusedError(f"{INDEX} says that {tensor} is in {str(file)[:100]!r}; expected a {SUFFIX} file of the same folder")
    return dict(found)


def check_named(file_of: Mapping[str, str], there: Collection[str]) -> None:
    """ModelRefusedError where the index names files that are not there."""
    if missing := sorted(set(file_of.values()) - set(there)):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelRefusedError(f"{INDEX} names {missing[0]}{more}, which the model does not have")


def joined(tables: Mapping[str, Mapping[str, TensorInfo]], file_of: Mapping[str, str] | None) -> dict[str, TensorInfo]:
    """One table from those of all files. With an index (`file_of`) it decides; without one, no tensor may be stored twice."""
    if file_of is not None:
        for tensor, file in file_of.items():
            if file in tables and tensor not in tables[file]:
                raise ModelRefusedError(f"{INDEX} says that {tensor} is in {file}, which does not have it")
        return {tensor: tables[file][tensor] for tensor, file in file_of.items() if file in tables}
    found: dict[str, TensorInfo] = {}
    origin: dict[str, str] = {}
    for file, table in tables.items():
        for tensor, info in table.items():
            if tensor in found:
                raise ModelRefusedError(f"tensor {tensor} is stored twice, in {origin[tensor]} and in {file}, and there is no {INDEX}")
            found[tensor], origin[tensor] = info, file
    return found


def _once(pairs: list[tuple[str, Any]], file: str) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ModelRefusedError(f"{file}: {key[:100]!r} occurs twice")
        result[key] = value
    return result


def _tensor(entry: Mapping[str, Any]) -> tuple[int, int, TensorInfo]:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)) or end < begin:
        raise ValueError("shape or offsets are not natural numbers")
    return begin, end, TensorInfo(dtype=str(entry["dtype"]), shape=shape, bytes=end - begin)
