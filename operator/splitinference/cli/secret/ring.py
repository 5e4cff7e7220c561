"""Fixed-point numbers modulo 2^64, and their additive shares. Arrays are uint64 and wrap around.

A number x is round(x · 2^16). Two shares are random, and their sum is the number (SecureML, Mohassel and Zhang 2017, eprint 2017/396).
"""

import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ring = NDArray[np.uint64]
Bits = NDArray[np.uint8]

FRACTION = 16
"""Bits after the point."""

WORD = 8
"""Bytes of one element."""


def encode(values: Any, fraction: int = FRACTION) -> Ring:
    """Real numbers as elements, of the same shape. ValueError where one is not finite or needs more than 62 bits."""
    scaled = np.asarray(values, dtype=np.float64) * 2.0**fraction
    if not np.all(np.isfinite(scaled)) or np.any(np.abs(scaled) >= 2.0**62):
        raise ValueError("a number is not finite, or too large for 64 bits of fixed point")
    return np.rint(scaled).astype(np.int64).view(np.uint64)


def decode(elements: Ring, fraction: int = FRACTION) -> NDArray[np.float64]:
    """Elements as real numbers, of the same shape."""
    return np.ascontiguousarray(elements).view(np.int64).astype(np.float64) / 2.0**fraction


def random_ring(shape: tuple[int, ...]) -> Ring:
    """Uniform elements from the system's generator of random numbers."""
    count = int(np.prod(shape, dtype=np.int64))
    return np.frombuffer(secrets.token_bytes(count * WORD), dtype="<u8").astype(np.uint64).reshape(shape)


def random_bits(shape: tuple[int, ...]) -> Bits:
    """Uniform bits, one in each byte."""
    count = int(np.prod(shape, dtype=np.int64))
    drawn = np.frombuffer(secrets.token_bytes((count + 7) // 8), dtype=np.uint8)
    return np.unpackbits(drawn, count=count).reshape(shape)


def split(elements: Ring) -> tuple[Ring, Ring]:
    """Two additive shares."""
    first = random_ring(elements.shape)
    return first, elements - first


def split_bits(bits: Bits) -> tuple[Bits, Bits]:
    """Two shares by exclusive or."""
    first = random_bits(bits.shape)
    return first, bits ^ first


def bits_of(elements: Ring) -> Bits:
    """[n] elements as [64, n] bits, the lowest first."""
    places = np.arange(64, dtype=np.uint64)[:, None]
    return ((elements[None, :] >> places) & np.uint64(1)).astype(np.uint8)
