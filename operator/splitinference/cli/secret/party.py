"""What each of the two parties computes. Neither learns more than masked values, as long as both follow the protocol and do not talk.

Truncation is off by at most one unit of the last place, and never by more: the dealer checked the range of each step.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.cli.secret.chain import gather, laid_out
from splitinference.cli.secret.dealing import LEVELS, LOW
from splitinference.cli.secret.ring import FRACTION, Bits, Ring, bits_of

Exchange = Callable[[bytes], bytes]
"""Send bytes to the other party, and give those that it sent in the same round; they are as many."""

OFFSET = np.uint64(1 << 62)
ONE = np.uint64(1)


class Party:
    """Party 0 or 1 during one inference."""

    def __init__(self, number: int, weights: Mapping[str, NDArray[Any]], material: Mapping[str, NDArray[Any]], exchange: Exchange) -> None:
        """`weights` are shares of the model, and `material` is of this inference alone."""
        self._weights, self._material, self._exchange = weights, material, exchange
        self._leads = np.uint64(number == 0)
        self._leads_bit = np.uint8(number == 0)

    def run(self, steps: list[dict[str, Any]], share: Ring) -> Ring:
        """From the input's share [rows, size] to the output's."""
        for number, step in enumerate(steps):
            share = self._product(number, share, bool(step["outputs_first"])) if step["product"] else self._relu(number, share)
        return share

    def _product(self, number: int, share: Ring, outputs_first: bool) -> Ring:
        opened = self._open(share - self._own(number, "mask"))
        weight, bias, index = (self._weights[f"{number}.{name}"] for name in ("weight", "bias", "index"))
        product = gather(opened, index) @ weight + self._own(number, "masked") + bias
        return laid_out(self._truncated(number, product), outputs_first)

    def _truncated(self, number: int, share: NDArray[Any]) -> Ring:
        """Shares of x / 2^16. With x + 2^62 + r opened, the sum's carry follows from the top bits."""
        shape = share.shape
        opened = self._open(share.reshape(-1) + self._leads * OFFSET + self._own(number, "r"))
        top, shift = opened >> np.uint64(63), np.uint64(FRACTION)
        carry = self._leads * top + self._own(number, "top") * (ONE - top - top)
        known = self._leads * (((opened & LOW) >> shift) - (OFFSET >> shift))
        share = known + (carry << np.uint64(63 - FRACTION)) - self._own(number, "shifted")
        return share.reshape(shape)

    def _relu(self, number: int, share: Ring) -> Ring:
        flat = share.reshape(-1)
        mine = self._negative(number, flat)
        opened = self._open_bits(mine ^ self._own(number, "bit")).astype(np.uint64)
        negative = self._leads * opened + self._own(number, "number") * (ONE - opened - opened)
        keep = self._leads - negative
        u, v, product = (self._own(number, name) for name in ("u", "v", "uv"))
        d, e = self._open(np.stack((flat - u, keep - v)))
        made: Ring = self._leads * d * e + d * v + e * u + product
        return made.reshape(share.shape)

    def _negative(self, number: int, share: Ring) -> Bits:
        """Shares of the sign bit: with c = x + r opened, it is the top bits of c and r, and whether c is below r in the other bits."""
        opened = self._open(share + self._own(number, "r"))
        known, low = bits_of(opened & LOW), self._own(number, "low")
        less, equal = (1 - known) * low, low ^ (self._leads_bit * (1 - known))
        triples, used = self._own(number, "and"), 0
        for pairs in LEVELS:
            a, b, b2, ab, ab2 = triples[:, used : used + pairs]
            used += pairs
            d, e, f = self._open_bits(np.stack((equal[1::2] ^ a, less[::2] ^ b, equal[::2] ^ b2)))
            less = less[1::2] ^ (self._leads_bit * (d & e)) ^ (d & b) ^ (e & a) ^ ab
            equal = (self._leads_bit * (d & f)) ^ (d & b2) ^ (f & a) ^ ab2
        top = self._leads_bit * (opened >> np.uint64(63)).astype(np.uint8)
        return np.asarray(top ^ self._own(number, "top") ^ less[0], dtype=np.uint8)

    def _own(self, number: int, name: str) -> NDArray[Any]:
        return self._material[f"{number}.{name}"]

    def _open(self, share: Ring) -> Ring:
        other = np.frombuffer(self._exchange(share.astype("<u8").tobytes()), dtype="<u8").astype(np.uint64)
        return share + other.reshape(share.shape)

    def _open_bits(self, share: Bits) -> Bits:
        other = np.frombuffer(self._exchange(np.packbits(share).tobytes()), dtype=np.uint8)
        return share ^ np.unpackbits(other, count=share.size).reshape(share.shape)
