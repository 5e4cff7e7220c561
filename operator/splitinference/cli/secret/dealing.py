"""What the dealer makes beforehand for one inference. It knows the weights, and sees no input and no output.

- Products: a mask A and A · W for each (the preprocessing of MiniONN, Liu et al. 2017, eprint 2017/452, by a dealer).
- Truncation: a random r, its top bit, and its other bits shifted (Escudero et al. 2020, eprint 2020/338).
- ReLU: r with its bits (an edaBit, the same paper), triples of bits, a bit in both kinds of shares, and a triple of elements (Beaver 1991).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.cli.secret.chain import SharedChain, Step, gather
from splitinference.cli.secret.ring import FRACTION, bits_of, encode, random_bits, random_ring, split, split_bits

LOW = np.uint64((1 << 63) - 1)
LEVELS = (32, 16, 8, 4, 2, 1)
"""Pairs of bits that are joined at each level of a comparison of 64 bits."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Shared:
    """The two parties' arrays."""

    first: Arrays
    second: Arrays

    def ring(self, name: str, value: Any) -> None:
        """Add shares of elements."""
        self.first[name], self.second[name] = split(value)

    def bits(self, name: str, value: Any) -> None:
        """Add shares of bits."""
        self.first[name], self.second[name] = split_bits(value)


def shared_weights(chain: SharedChain) -> Shared:
    """Shares of every matrix and bias, and the indices, which both may know."""
    made = Shared({}, {})
    for number, step in enumerate(chain.steps):
        if step.index is None or step.weight is None:
            continue
        outputs = step.weight.shape[1]
        made.ring(f"{number}.weight", encode(step.weight))
        made.ring(f"{number}.bias", encode(np.zeros(outputs) if step.bias is None else step.bias, 2 * FRACTION))
        made.first[f"{number}.index"] = made.second[f"{number}.index"] = step.index
    return made


def material(chain: SharedChain, rows: int) -> Shared:
    """Shares for one inference of `rows` rows. It must be used once at most."""
    made = Shared({}, {})
    for number, step in enumerate(chain.steps):
        if step.weight is None:
            _relu(made, number, rows * step.size)
        else:
            _product(made, number, step, rows)
    return made


def _product(made: Shared, number: int, step: Step, rows: int) -> None:
    assert step.index is not None and step.weight is not None  # noqa: S101, PT018
    mask = random_ring((rows, step.size))
    made.ring(f"{number}.mask", mask)
    masked = gather(mask, step.index) @ encode(step.weight)
    made.ring(f"{number}.masked", masked)
    r = random_ring((masked.size,))
    made.ring(f"{number}.r", r)
    made.ring(f"{number}.shifted", (r & LOW) >> np.uint64(FRACTION))
    made.ring(f"{number}.top", r >> np.uint64(63))


def _relu(made: Shared, number: int, count: int) -> None:
    r = random_ring((count,))
    made.ring(f"{number}.r", r)
    made.bits(f"{number}.low", bits_of(r & LOW))
    made.bits(f"{number}.top", (r >> np.uint64(63)).astype(np.uint8))
    left, right, other = (random_bits((sum(LEVELS), count)) for _ in range(3))
    made.bits(f"{number}.and", np.stack((left, right, other, left & right, left & other)))
    bit = random_bits((count,))
    made.bits(f"{number}.bit", bit)
    made.ring(f"{number}.number", bit.astype(np.uint64))
    u, v = random_ring((count,)), random_ring((count,))
    for name, value in (("u", u), ("v", v), ("uv", u * v)):
        made.ring(f"{number}.{name}", value)
