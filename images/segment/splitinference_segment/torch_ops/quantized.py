"""Matrices in codes of 4 or 8 bits, with a scale and a zero for each group of inputs, and products with them.

A code c of four bits stands for (c - 8) * scale + zero. A code of eight bits is two planes of four: the product with both is one product of
twice as many inputs, the same ones again. That is quicker than torch's own product of eight bits, and has scales by group.

Few rows go through torch's product of four bits. It takes longer with each row, so that more rows are multiplied with the weights that
the codes stand for, a piece of the matrix at a time. Where torch has no such product (other devices), all rows are.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitinference_modelfiles.held import ROWS, Form

MOST_ROWS = {4: 256, 8: 96}
"""Rows up to which torch's product is quicker than to dequantize, in bfloat16 by bits; measured (docs/decisions/0080)."""
_MOST_ROWS_OF_OTHERS = 2
"""In float16 and float32 torch's product takes as long again with each row."""
_PIECE = 1 << 20
"""Weights that are dequantized at a time."""
_LEAST = 1e-8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a block of rows has its codes. A block of `rows` rows is bytes [inputs, rows / 2]: the lower four bits are of the first half of
    `order`, the upper four of the other half. `kernel`: torch's product reads it."""

    rows: int
    order: tuple[int, ...]
    kernel: bool

    def inverse(self) -> list[int]:
        """Row of a block → its place in `order`."""
        return [self.order.index(row) for row in range(self.rows)]


PLAIN = Layout(ROWS, tuple(range(ROWS)), kernel=False)


@functools.cache
def cpu_layout() -> Layout:
    """The layout of torch's product on this processor, found out by packing single rows; the plain one where it is none of this kind."""
    for rows in (ROWS, ROWS // 2):
        try:
            if (found := _learnt(rows)) is not None:
                return found
        except (RuntimeError, AttributeError):  # a torch without this product
            break
    return PLAIN


def _learnt(rows: int) -> Layout | None:
    inputs, places = 32, {}
    for row in range(rows):
        codes = torch.zeros(rows, inputs, dtype=torch.int32)
        codes[row] = 15
        first = _converted(codes).reshape(inputs, rows // 2)[0]
        byte = int(first.argmax())
        places[byte + (rows // 2 if int(first[byte]) > 15 else 0)] = row
    if sorted(places) != list(range(rows)):
        return None
    layout = Layout(rows, tuple(places[place] for place in range(rows)), kernel=True)
    codes = torch.randint(0, 16, (2 * rows, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    return layout if torch.equal(_packed(codes, layout).reshape(-1), _converted(codes.int()).reshape(-1)) else None


def _converted(codes: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return result.view(torch.uint8)


def _packed(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Codes below 16, uint8 [rows, inputs] → uint8 [blocks, inputs, rows of a block / 2]."""
    rows, inputs = codes.shape
    ordered = codes.view(rows // layout.rows, layout.rows, inputs)[:, list(layout.order)]
    low, high = ordered.chunk(2, 1)
    return (low | (high << 4)).transpose(1, 2).contiguous()


class Matrix:
    """Codes of a matrix [rows, columns], and products with it. `order`: the input that stands in each place, where inputs were put in
    another order so that groups lie together."""

    def __init__(self, rows: int, columns: int, form: Form, dtype: torch.dtype, device: torch.device) -> None:
        """Empty; `put` fills it, rows by rows."""
        self.rows, self.columns, self.form, self.dtype = rows, columns, form, dtype
        self.order: torch.Tensor | None = None
        self.layout = cpu_layout() if device.type == "cpu" else PLAIN
        filled = -(-rows // ROWS) * ROWS
        inputs = columns * form.planes
        self.codes = torch.zeros(filled // self.layout.rows, inputs, self.layout.rows // 2, dtype=torch.uint8, device=device)
        self.scales = torch.zeros(inputs // form.group, filled, 2, dtype=dtype, device=device)
        """For each group and row the scale and the zero."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return int(self.codes.nbytes + self.scales.nbytes)

    def put(self, first: int, codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor) -> None:
        """Rows from `first` on, which is a multiple of 64: codes uint8 [rows, columns], below 16 or of eight bits, and for each group scale
        and zero [rows, groups]: a code c stands for (c - 8) * scale + zero, of eight bits for (c - 128) * scale + zero."""
        rows, missing = len(codes), -len(codes) % ROWS
        if self.form.planes == 2:
            codes = torch.cat([codes >> 4, codes & 15], 1)
            # (16 h + l - 128) s + z  =  (h - 8) 16 s + z  +  (l - 8) s + 8 s
            scale, zero = torch.cat([16 * scale, scale], 1), torch.cat([zero, 8 * scale], 1)
        self.scales[:, first : first + rows] = torch.stack([scale, zero], -1).transpose(0, 1).to(self.dtype)
        whole = nn.functional.pad(codes, (0, 0, 0, missing))
        block = first // self.layout.rows
        self.codes[block : block + len(whole) // self.layout.rows] = _packed(whole, self.layout)

    def quantize(self, first: int, weights: torch.Tensor) -> None:
        """Rows from `first` on, which is a multiple of 64, in any floating-point type: each code is the nearest."""
        rows, group = len(weights), self.form.group
        values = weights.float().view(rows, -1, group)
        if self.form.bits == 8:
            scale = (values.abs().amax(2) / 127).clamp_(min=_LEAST).to(self.dtype).float()
            codes = (values / scale[..., None]).round_().clamp_(-128, 127) + 128
            zero = torch.zeros_like(scale)
        else:
            low, high = values.aminmax(dim=2)
            scale = ((high - low) / 15).clamp_(min=_LEAST).to(self.dtype).float()
            zero = (low + 8 * scale).to(self.dtype).float()
            codes = ((values - zero[..., None]) / scale[..., None]).round_().clamp_(-8, 7) + 8
        self.put(first, codes.view(rows, -1).to(torch.uint8), scale, zero)

    def product(self, values: torch.Tensor) -> torch.Tensor:
        """values [n, columns] times the matrix's transpose: [n, rows]."""
        if self.order is not None:
            values = values.index_select(1, self.order)
        most = MOST_ROWS[self.form.bits] if self.dtype is torch.bfloat16 else _MOST_ROWS_OF_OTHERS
        if not self.layout.kernel or len(values) > most:
            return self._dequantized_product(values)
        if self.form.planes == 2:
            values = torch.cat([values, values], 1)
        packed = self.codes.view(-1, self.codes.shape[1] // 2)
        result: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(values.contiguous(), packed, self.form.group, self.scales)
        return result[:, : self.rows]

    def weights(self, first: int, last: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """What the codes of blocks [first, last) stand for: [columns, blocks, rows of a block], rows in the layout's order."""
        dtype = dtype or self.dtype
        half, group = self.layout.rows // 2, self.form.group
        groups = self.columns // group  # of two planes the first ones: their zeros, and the second plane's scales
        scales = self.scales.view(len(self.scales), -1, self.layout.rows, 2)[:, first:last][:, :, list(self.layout.order)].to(dtype)
        scale, zero = scales[-groups:, None, :, :, 0], scales[:groups, None, :, :, 1]
        made = torch.empty(groups, group, last - first, self.layout.rows, dtype=dtype, device=self.codes.device)
        codes = self.codes[first:last]
        for part, upper in ((slice(None, half), False), (slice(half, None), True)):
            centred = self._centred(codes, upper=upper).to(dtype).view(last - first, groups, group, half).permute(1, 2, 0, 3)
            torch.addcmul(zero[..., part], centred, scale[..., part], out=made[..., part])
        return made.view(self.columns, last - first, self.layout.rows)

    def _centred(self, codes: torch.Tensor, *, upper: bool) -> torch.Tensor:
        """Codes of one half of each block's rows, less 8 or 128: int8 [blocks, columns, half of a block's rows]."""
        if self.form.planes == 1:
            return ((codes >> 4) if upper else (codes & 15)).view(torch.int8) - 8
        high, low = codes.chunk(2, 1)
        whole = ((high & 0xF0) | (low >> 4)) if upper else ((high << 4) | (low & 15))
        return (whole ^ 0x80).view(torch.int8)

    def lookup(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows by number: ids [...] → [..., columns]."""
        found = ids.reshape(-1)
        block, place = found // self.layout.rows, torch.tensor(self.layout.inverse(), device=ids.device)[found % self.layout.rows]
        half = self.layout.rows // 2
        bytes_ = self.codes[block, :, place % half]
        codes = torch.where((place >= half)[:, None], bytes_ >> 4, bytes_ & 15)
        scale, zero = self.scales[:, found].float().unbind(-1)
        spread = (codes.float() - 8).view(len(found), -1, self.form.group) * scale.t()[..., None] + zero.t()[..., None]
        rows = spread.view(len(found), self.form.planes, self.columns).sum(1).to(self.dtype)
        if self.order is not None:
            rows = torch.empty_like(rows).index_copy_(1, self.order, rows)
        return rows.view(*ids.shape, self.columns)

    def _dequantized_product(self, values: torch.Tensor) -> torch.Tensor:
        blocks, rows = len(self.codes), self.layout.rows
        step = max(1, _PIECE // (self.columns * rows))
        result = values.new_empty(len(values), blocks, rows)
        for first in range(0, blocks, step):
            last = min(blocks, first + step)
            piece = self.weights(first, last).view(self.columns, -1)
            result[:, first:last] = (values @ piece).view(len(values), last - first, rows)
        inverse = torch.tensor(self.layout.inverse(), device=values.device)
        return result.index_select(2, inverse).view(len(values), -1)[:, : self.rows]

    @staticmethod
    def can_join(parts: "Sequence[Matrix]") -> bool:
        """Whether these matrices, one below the other, are one."""
        first = parts[0]
        return all((part.form, part.columns, part.order) == (first.form, first.columns, None) and part.rows % ROWS == 0 for part in parts)

    @staticmethod
    def joined(parts: "Sequence[Matrix]") -> "Matrix":
        """One below the other."""
        first = parts[0]
        whole = Matrix(0, first.columns, first.form, first.dtype, first.codes.device)
        whole.rows = sum(part.rows for part in parts)
        whole.codes = torch.cat([part.codes for part in parts])
        whole.scales = torch.cat([part.scales for part in parts], 1)
        return whole


class QuantizedLinear(nn.Module):
    """In place of a linear layer."""

    def __init__(self, matrix: Matrix, bias: torch.Tensor | None) -> None:
        """`bias` [rows], in the matrix's data type; it may be filled later."""
        super().__init__()
        self.matrix = matrix
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.in_features, self.out_features = matrix.columns, matrix.rows

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., inputs] → [..., outputs]."""
        result = self.matrix.product(hidden.reshape(-1, self.in_features)).view(*hidden.shape[:-1], self.out_features)
        return result if self.bias is None else result + self.bias


class QuantizedEmbedding(nn.Module):
    """In place of an embedding. `factor`: Gemma's, of what is looked up."""

    def __init__(self, matrix: Matrix, factor: torch.Tensor | None = None) -> None:
        super().__init__()
        self.matrix, self._factor = matrix, factor

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[...] → [..., hidden]."""
        rows = self.matrix.lookup(ids)
        return rows if self._factor is None else rows * self._factor.to(rows.dtype)


def matrices(modules: Iterable[nn.Module]) -> list[Matrix]:
    """Those that the modules hold, each once."""
    found = [part.matrix for module in modules for part in module.modules() if isinstance(part, QuantizedLinear | QuantizedEmbedding)]
    return list({id(matrix): matrix for matrix in found}.values())
