"""In which form a segment holds a matrix of weights, and how many bytes that is: in the serving data type, or in codes of 4 or 8 bits.

Codes have a scale and a zero for each group of inputs. Two planes of four bits make a code of eight. Planner and segment count by these.
"""

from dataclasses import dataclass

AS_STORED, INT8, INT4 = "AsStored", "Int8", "Int4"
WEIGHTS = (AS_STORED, INT8, INT4)
"""`spec.model.weights`."""
BITS = {INT8: 8, INT4: 4}
ROWS = 64
"""Rows are filled up to a multiple of this: torch's product lays out so many side by side."""
GROUPS = (256, 128, 64, 32)
"""Inputs that share a scale, as torch's product takes them."""
_QUANTIZED_GROUPS = {8: (128, 64, 32), 4: (32,)}
"""Those that this project quantizes by, best first: of eight bits few bytes count, of four bits the loss does."""
PLANE_BITS = 4


@dataclass(frozen=True, slots=True)
class Form:
    """Codes of `bits` (4 or 8) with a scale and a zero for each `group` inputs of a row."""

    bits: int
    group: int

    @property
    def planes(self) -> int:
        """Planes of four bits."""
        return self.bits // PLANE_BITS

    def bytes(self, rows: int, columns: int, size: int) -> int:
        """Of a matrix [rows, columns]; scales and zeros have `size` bytes each."""
        filled = -(-rows // ROWS) * ROWS
        return filled * columns * self.bits // 8 + filled * (columns * self.planes // self.group) * 2 * size


@dataclass(frozen=True, slots=True)
class Held:
    """A matrix [rows, columns] in codes: `rows` are outputs, `columns` inputs, whichever way it is stored."""

    form: Form
    rows: int
    columns: int

    def bytes(self, size: int) -> int:
        """Bytes held, where the data type has `size` bytes."""
        return self.form.bytes(self.rows, self.columns, size)


def quantized_form(columns: int, bits: int) -> Form | None:
    """The form of a matrix that is quantized when it is loaded; None where its inputs do not make whole groups: it keeps the data type."""
    return next((Form(bits, group) for group in _QUANTIZED_GROUPS[bits] if columns % group == 0), None)


def stored_form(columns: int, bits: int, group: int) -> Form | None:
    """The form of codes as a checkpoint stores them, `group` inputs to a scale; None where they are held in the data type instead."""
    fitting = next((each for each in GROUPS if group % each == 0), None)
    return Form(bits, fitting) if bits in (4, 8) and fitting is not None and columns % group == 0 else None
