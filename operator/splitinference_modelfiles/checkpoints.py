"""Pre-quantized checkpoints: which tensors together are one matrix of weights, in which codes, and which kinds are read.

A method's configuration says how codes are meant; how many bits and which groups, the tensors' shapes say. What is found is checked here,
from names and shapes alone, so that the planner and the segments agree. Unpacking is the segment's matter.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.quantization import method_of, refusal
from splitinference_modelfiles.rules.settings import shown
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

GPTQ, AWQ, PACKED, INT8, FP8 = "gptq", "awq", "packed", "int8", "fp8"
_WORD = 32
Infos = Mapping[str, TensorInfo | None]


@dataclass(frozen=True)
class Stored:
    """One matrix [rows, columns] as a checkpoint stores it.

    `parts`: what each of its tensors is → its stored name. `bits`: of a code; `group`: inputs that share a scale. `previous_zero`: zeros
    are stored less one, as GPTQ's first format does. `block`: rows and inputs of a scale of FP8. `ordered`: groups may be of inputs that
    do not lie together."""

    kind: str
    rows: int
    columns: int
    bits: int
    group: int
    parts: Mapping[str, str]
    previous_zero: bool = False
    ordered: bool = False
    block: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors as if no weight were quantized, and how those are stored that are. Entries are None where their file is not here."""

    tensors: Infos
    quantized: Mapping[str, Stored]


_SUFFIXES = {
    GPTQ: ("qweight", "qzeros", "scales", "g_idx"),
    AWQ: ("qweight", "qzeros", "scales"),
    PACKED: ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"),
    INT8: ("weight", "weight_scale", "weight_zero_point"),
    FP8: ("weight", "weight_scale", "weight_scale_inv"),
}
_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "input_global_scale", "output_scale", "k_scale", "v_scale", "q_scale")
"""For activations in eight bits, which are computed in 16 here: they say nothing about the weights."""
_FORMATS = {"pack-quantized": PACKED, "int-quantized": INT8, "float-quantized": FP8, "naive-quantized": FP8}
_CODES = frozenset({"I8", "F8_E4M3"})


def read_checkpoint(config: Mapping[str, Any], tensors: Infos, files: Collection[str]) -> Checkpoint:
    """ModelRefusedError where the weights are quantized in a way that is not read, or their tensors contradict each other."""
    found = method_of(config, tensors, files)
    if found is None:
        return Checkpoint(tensors, {})
    method, settings, where = found
    kind = _kind(method, settings, where)
    stems = _stems(tensors, kind)
    if not stems:
        raise ModelRefusedError(f"{where} says {method}, and no tensor is quantized so ({', '.join(_SUFFIXES[kind][:2])})")
    rest = {name: info for name, info in tensors.items() if not name.endswith(tuple(f".{suffix}" for suffix in _OF_ACTIVATIONS))}
    quantized: dict[str, Stored] = {}
    for stem, parts in stems.items():
        made = _READ[kind](stem, parts, tensors, settings)
        for name in parts.values():
            rest.pop(name, None)
        if f"{stem}.weight" in rest:
            raise ModelRefusedError(f"tensor {stem}.weight is stored twice: as it is, and quantized ({parts[_SUFFIXES[kind][0]]})")
        quantized[f"{stem}.weight"] = made
        known = all(tensors[name] is not None for name in parts.values())
        size = sum(info.bytes for name in parts.values() if (info := tensors[name]) is not None)
        rest[f"{stem}.weight"] = TensorInfo("F16", (made.rows, made.columns), size) if known and made.rows else None
    return Checkpoint(rest, quantized)


def _kind(method: str, settings: Mapping[str, Any], where: str) -> str:
    if method == "GPTQ":
        _expect(settings, "checkpoint_format", ("gptq", "gptq_v2"), "gptq")
        if settings.get("dynamic"):
            raise ModelRefusedError(f"{where}: GPTQ with settings of its own for some layers (dynamic) is not served")
        return GPTQ
    if method == "AWQ":
        _expect(settings, "version", ("gemm", "GEMM"), "gemm")
        return AWQ
    if method == "FP8":
        return FP8
    if method.startswith("compressed-tensors"):
        if _sparse(settings):
            raise ModelRefusedError(f"{where}: sparse weights (sparsity_config) are not served")
        inner = str(settings.get("format"))
        if inner not in _FORMATS:
            raise ModelRefusedError(f"{where}: compressed-tensors of format {shown(inner)} is not served; served are {', '.join(_FORMATS)}")
        if inner == "naive-quantized" and any(_weights(one).get("type") == "int" for one in _groups(settings)):
            return INT8
        return _FORMATS[inner]
    raise refusal(method, where)


def _sparse(settings: Mapping[str, Any]) -> bool:
    found = settings.get("sparsity_config")
    return isinstance(found, Mapping) and found.get("format") not in (None, "dense")


def _groups(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = settings.get("config_groups")
    return [one for one in found.values() if isinstance(one, Mapping)] if isinstance(found, Mapping) else []


def _weights(group: Mapping[str, Any]) -> Mapping[str, Any]:
    found = group.get("weights")
    return found if isinstance(found, Mapping) else {}


def _expect(settings: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> None:
    if (value := settings.get(key, default)) not in known:
        raise ModelRefusedError(f"quantization_config: {key} {shown(value)} is not served; served are {', '.join(known)}")


def _stems(tensors: Infos, kind: str) -> dict[str, dict[str, str]]:
    """Path of each quantized layer → what each of its tensors is → stored name."""
    found: dict[str, dict[str, str]] = {}
    for name in tensors:
        stem, _, suffix = name.rpartition(".")
        if suffix in _SUFFIXES[kind]:
            found.setdefault(stem, {})[suffix] = name
    first = _SUFFIXES[kind][0]
    if kind in (INT8, FP8):  # `weight` alone is no quantized one
        return {stem: parts for stem, parts in found.items() if first in parts and _is_code(tensors[parts[first]], parts)}
    return {stem: parts for stem, parts in found.items() if len(parts) > (1 if "scales" not in parts else 0)}


def _is_code(info: TensorInfo | None, parts: Mapping[str, str]) -> bool:
    return len(parts) > 1 if info is None else info.dtype in _CODES


def _gptq(stem: str, parts: Mapping[str, str], tensors: Infos, settings: Mapping[str, Any]) -> Stored:
    weight, scales, zeros = (_shape(stem, parts, key, tensors, 2) for key in ("qweight", "scales", "qzeros"))
    bits = _bits(settings, (4, 8), "bits")
    previous = settings.get("checkpoint_format", "gptq") == "gptq"
    ordered = settings.get("desc_act") is not False
    if weight is None or scales is None or zeros is None:
        return Stored(GPTQ, 0, 0, bits, 0, parts, previous, ordered)
    columns, rows = weight[0] * _WORD // bits, weight[1]
    group = _group(stem, columns, scales[0])
    _agrees(stem, "scales", scales, (columns // group, rows))
    _agrees(stem, "qzeros", zeros, (columns // group, rows * bits // _WORD))
    if "g_idx" in parts and (order := tensors[parts["g_idx"]]) is not None:
        _agrees(stem, "g_idx", order.shape, (columns,))
    return Stored(GPTQ, rows, columns, bits, group, parts, previous, ordered)


def _awq(stem: str, parts: Mapping[str, str], tensors: Infos, settings: Mapping[str, Any]) -> Stored:
    weight, scales = (_shape(stem, parts, key, tensors, 2) for key in ("qweight", "scales"))
    bits = _bits(settings, (4,), "bits" if "bits" in settings else "w_bit")
    if "qzeros" not in parts:
        raise ModelRefusedError(f"tensor {stem}.qzeros is missing: AWQ without zero points is not served")
    if weight is None or scales is None:
        return Stored(AWQ, 0, 0, bits, 0, parts)
    columns, rows = weight[0], weight[1] * _WORD // bits
    group = _group(stem, columns, scales[0])
    _agrees(stem, "scales", scales, (columns // group, rows))
    if (zeros := _shape(stem, parts, "qzeros", tensors, 2)) is not None:
        _agrees(stem, "qzeros", zeros, (columns // group, rows * bits // _WORD))
    return Stored(AWQ, rows, columns, bits, group, parts)


def _packed(stem: str, parts: Mapping[str, str], tensors: Infos, settings: Mapping[str, Any]) -> Stored:
    weight, scales = (_shape(stem, parts, key, tensors, 2) for key in ("weight_packed", "weight_scale"))
    bits = _of_groups(settings)  # not told by shapes: 4 bits of k inputs look like 8 of k / 2, and `weight_shape` is in no header
    if weight is None or scales is None:
        return Stored(PACKED, 0, 0, bits, 0, parts, ordered="weight_g_idx" in parts)
    rows, columns = weight[0], weight[1] * _WORD // bits
    group = _group(stem, columns, scales[1])
    _agrees(stem, "weight_scale", scales, (rows, columns // group))
    if "weight_zero_point" in parts and (zeros := _shape(stem, parts, "weight_zero_point", tensors, 2)) is not None:
        _agrees(stem, "weight_zero_point", zeros, (-(-rows * bits // _WORD), columns // group))
    return Stored(PACKED, rows, columns, bits, group, parts, ordered="weight_g_idx" in parts)


def _int8(stem: str, parts: Mapping[str, str], tensors: Infos, _: Mapping[str, Any]) -> Stored:
    weight, scales = _shape(stem, parts, "weight", tensors, 2), _shape(stem, parts, "weight_scale", tensors, None)
    if weight is None or scales is None:
        return Stored(INT8, 0, 0, 8, 0, parts)
    rows, columns = weight
    group = _group(stem, columns, scales[1]) if len(scales) == 2 else columns
    if scales not in ((1,), (), (1, 1), (rows,), (rows, columns // group)):
        _agrees(stem, "weight_scale", scales, (rows, columns // group))
    return Stored(INT8, rows, columns, 8, group, parts)


def _fp8(stem: str, parts: Mapping[str, str], tensors: Infos, settings: Mapping[str, Any]) -> Stored:
    weight = _shape(stem, parts, "weight", tensors, 2)
    key = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    scales = _shape(stem, parts, key, tensors, None)
    if weight is None or scales is None:
        return Stored(FP8, 0, 0, 8, 0, parts)
    rows, columns = weight
    sizes = settings.get("weight_block_size")
    for one in _groups(settings):
        sizes = sizes or _weights(one).get("block_structure")
    if scales in ((1,), (), (1, 1)):
        return Stored(FP8, rows, columns, 8, columns, parts, block=(rows, columns))
    if scales in ((rows,), (rows, 1)):
        return Stored(FP8, rows, columns, 8, columns, parts, block=(1, columns))
    if not (isinstance(sizes, list) and len(sizes) == 2 and all(type(size) is int and size > 0 for size in sizes)):
        raise ModelRefusedError(f"tensor {parts[key]} has shape {list(scales)}, and config.json does not say the blocks of its scales")
    high, wide = sizes
    _agrees(stem, key, scales, (-(-rows // high), -(-columns // wide)))
    return Stored(FP8, rows, columns, 8, wide, parts, block=(high, wide))


_READ: Mapping[str, Callable[[str, Mapping[str, str], Infos, Mapping[str, Any]], Stored]] = {
    GPTQ: _gptq, AWQ: _awq, PACKED: _packed, INT8: _int8, FP8: _fp8,
}  # fmt: skip


def _bits(settings: Mapping[str, Any], known: tuple[int, ...], key: str) -> int:
    found = settings.get(key)
    if type(found) is not int or found not in known:
        raise ModelRefusedError(f"quantization_config: {key} is {shown(found)}; served are {', '.join(map(str, known))}")
    return found


def _of_groups(settings: Mapping[str, Any]) -> int:
    found = {_weights(one).get("num_bits") for one in _groups(settings)}
    if len(found) != 1 or (bits := found.pop()) not in (4, 8):
        raise ModelRefusedError("quantization_config: config_groups should have weights of one num_bits, 4 or 8")
    return int(bits)


def _shape(stem: str, parts: Mapping[str, str], key: str, tensors: Infos, dimensions: int | None) -> tuple[int, ...] | None:
    """Of one of the matrix's tensors; None where its file is not here."""
    if key not in parts:
        raise ModelRefusedError(f"tensor {stem}.{key} is missing: it belongs to {next(iter(parts.values()))}")
    info = tensors[parts[key]]
    if info is not None and dimensions is not None and len(info.shape) != dimensions:
        raise ModelRefusedError(f"tensor {parts[key]} has shape {list(info.shape)}, expected {dimensions} dimensions")
    return None if info is None else info.shape


def _group(stem: str, columns: int, groups: int) -> int:
    if groups < 1 or columns % groups:
        raise ModelRefusedError(f"tensor {stem}: {columns} inputs do not make {groups} groups of equal size")
    return columns // groups


def _agrees(stem: str, key: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ModelRefusedError(f"tensor {stem}.{key} has shape {list(shape)}, the other tensors of this weight say {list(wanted)}")
