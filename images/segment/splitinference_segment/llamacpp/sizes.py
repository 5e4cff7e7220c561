"""Whether a file's metadata and its tensors agree on heads and experts. libllama ends the process where some of these do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

_MOST = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """Heads, groups of heads that share keys, and the widths of one head's keys and values."""

    heads: int
    groups: int
    key: int
    value: int


def sizes_of(metadata: Mapping[str, Any], tensors: Mapping[str, TensorInfo], hidden: int) -> Sizes:
    """From the metadata, checked against each block's tensors. ModelRefusedError names what does not fit."""
    read = _Reader(metadata)
    if (width := read.number("embedding_length")) != hidden:
        raise ModelRefusedError(f"{read.name}.embedding_length is {width}, token_embd.weight has {hidden} columns")
    heads = read.number("attention.head_count")
    usual = hidden // heads
    made = Sizes(
        heads, read.number("attention.head_count_kv", heads), read.number("attention.key_length", usual),
        read.number("attention.value_length", usual),
    )  # fmt: skip
    rows = {
        "attn_q.weight": made.heads * made.key,
        "attn_k.weight": made.groups * made.key,
        "attn_v.weight": made.groups * made.value,
        "attn_qkv.weight": made.heads * made.key + made.groups * (made.key + made.value),
    }
    experts = 0
    for name, info in tensors.items():
        part = name.split(".", 2)[-1] if name.startswith("blk.") else ""
        if part in rows and info.shape[0] != rows[part]:
            raise ModelRefusedError(f"tensor {name} has {info.shape[0]} rows, the metadata says {rows[part]}")
        if part.endswith("_exps.weight"):
            experts = read.number("expert_count")
            if info.shape[0] != experts:
                raise ModelRefusedError(f"tensor {name} holds {info.shape[0]} experts, {read.name}.expert_count is {experts}")
    if experts and (used := read.number("expert_used_count")) > experts:
        raise ModelRefusedError(f"{read.name}.expert_used_count is {used}, of {experts} experts")
    return made


class _Reader:
    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.name = metadata["general.architecture"]

    def number(self, key: str, default: int | None = None) -> int:
        """A positive whole number, one for all blocks."""
        value = self._metadata.get(f"{self.name}.{key}", default)
        if isinstance(value, list) and value:
            if len(set(value)) != 1:
                raise ModelRefusedError(f"{self.name}.{key} is not the same for all blocks, which the llama.cpp engine cannot hand over")
            value = value[0]
        if type(value) is not int or not 0 < value < _MOST:
            found = "missing" if value is None else str(value)[:40]
            raise ModelRefusedError(f"{self.name}.{key} is {found}, expected a positive whole number")
        return value
