"""Weights of pre-quantized checkpoints, rows by rows: their codes with scales and zeros, or the numbers that these stand for.

Everywhere a code c of b bits stands for (c - 2^(b-1)) * scale + zero. Formats as their libraries write them: AutoGPTQ and GPTQModel,
AutoAWQ (gemm), compressed-tensors, and transformers' FP8 with blocks.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from splitinference_modelfiles.checkpoints import AWQ, FP8, GPTQ, INT8, PACKED, Stored

_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where a word has the codes of eight outputs that follow each other."""
Parts = Mapping[str, torch.Tensor]


class Codes(NamedTuple):
    """uint8 [rows, columns], and scale and zero [rows, groups] in float32. Inputs are in the order of `order_of`."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


class UnequalGroupsError(Exception):
    """A checkpoint's groups do not have the same number of inputs."""


def order_of(stored: Stored, parts: Parts) -> torch.Tensor | None:
    """The inputs in the order in which groups lie together, int64 [columns]; None where they do already."""
    order = parts.get("g_idx", parts.get("weight_g_idx"))
    if order is None or torch.equal(order, torch.arange(stored.columns, dtype=order.dtype) // stored.group):
        return None
    counts = torch.bincount(order.long(), minlength=stored.columns // stored.group)
    if not bool((counts == stored.group).all()):
        raise UnequalGroupsError(f"groups have {int(counts.min())} to {int(counts.max())} inputs, expected {stored.group} each")
    return torch.argsort(order, stable=True)


def codes_of(stored: Stored, parts: Parts, order: torch.Tensor | None, first: int, last: int) -> Codes:
    """Rows [first, last), which begin at a multiple of 64. Not of FP8."""
    bits, half = stored.bits, 1 << (stored.bits - 1)
    if stored.kind == GPTQ:
        codes = _codes(parts["qweight"][:, first:last].t(), bits)
        points = _codes(parts["qzeros"], bits)[:, first:last].t().float() + (1 if stored.previous_zero else 0) - half
        scale = parts["scales"][:, first:last].t().float()
    elif stored.kind == AWQ:
        codes = _awq(parts["qweight"], first, last).t()
        points, scale = _awq(parts["qzeros"], first, last).t().float() - half, parts["scales"][:, first:last].t().float()
    elif stored.kind == PACKED:
        codes = _codes(parts["weight_packed"][first:last], bits)
        scale, points = parts["weight_scale"][first:last].float(), None
        if "weight_zero_point" in parts:
            points = _codes(parts["weight_zero_point"].t(), bits).t()[first:last].float() - half
    elif stored.kind == INT8:
        codes = (parts["weight"][first:last] ^ -128).view(torch.uint8)
        groups = stored.columns // stored.group
        scale = _of_rows(parts["weight_scale"], stored.rows, groups)[first:last]
        points = _of_rows(parts["weight_zero_point"], stored.rows, groups)[first:last] if "weight_zero_point" in parts else None
    else:
        raise TypeError(f"weights of the kind {stored.kind} have no codes")
    if order is not None:
        codes = codes.index_select(1, order)
    return Codes(codes.contiguous(), scale, torch.zeros_like(scale) if points is None else -points * scale)


def weights_of(stored: Stored, parts: Parts, order: torch.Tensor | None, first: int, last: int) -> torch.Tensor:
    """Rows [first, last), which begin at a multiple of 64, in float32."""
    if stored.kind == FP8:
        high, wide = stored.block
        scale = parts.get("weight_scale_inv", parts.get("weight_scale"))
        assert scale is not None  # noqa: S101 - the table was checked
        scales = scale.float().reshape(-(-stored.rows // high), -(-stored.columns // wide))
        rows = scales.repeat_interleave(high, 0)[first:last].repeat_interleave(wide, 1)[:, : stored.columns]
        return parts["weight"][first:last].float() * rows
    codes, scale, zero = codes_of(stored, parts, order, first, last)
    centred = (codes.float() - (1 << (stored.bits - 1))).view(len(codes), -1, stored.group)
    made = (centred * scale[..., None] + zero[..., None]).view(len(codes), stored.columns)
    return made if order is None else torch.empty_like(made).index_copy_(1, order, made)


def _codes(words: torch.Tensor, bits: int) -> torch.Tensor:
    """int32 [rows, words], codes from the lowest bits on → uint8 [rows, codes]."""
    bytes_ = words.contiguous().view(torch.uint8)
    return bytes_ if bits == 8 else torch.stack([bytes_ & 15, bytes_ >> 4], -1).view(len(bytes_), -1)


def _awq(words: torch.Tensor, first: int, last: int) -> torch.Tensor:
    """int32 [inputs or groups, outputs / 8] → uint8 [inputs or groups, last - first]."""
    found = _codes(words[:, first // 8 : -(-last // 8)], 4)
    return found.view(len(found), -1, 8)[:, :, list(_AWQ_PLACES)].reshape(len(found), -1)[:, : last - first]


def _of_rows(values: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """One value for all, for each row, or for each group → float32 [rows, groups]."""
    found = values.float()
    return found.reshape(-1, groups if found.numel() == rows * groups else 1).expand(rows, groups)
