"""Profiles of decoder models from their published dimensions, for synthetic traces: no file of the model is needed."""

import hashlib
from dataclasses import dataclass

from splitinference.core.values.profile import Layer, LayerKind, Profile

RUNTIME_BYTES = 380 * 2**20
"""Memory of a segment server that holds no layer, measured on the CPU image."""


@dataclass(frozen=True)
class Decoder:
    """Dimensions of a decoder with gated feed-forward blocks, grouped attention and an untied head."""

    name: str
    blocks: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    bytes_per_weight: int = 2


LLAMA_1B = Decoder("llama-3.2-1b", blocks=16, hidden=2048, feed_forward=8192, heads=32, kv_heads=8, vocabulary=128256)
LLAMA_8B = Decoder("llama-3.1-8b", blocks=32, hidden=4096, feed_forward=14336, heads=32, kv_heads=8, vocabulary=128256)


def profile_of(decoder: Decoder) -> Profile:
    """The profile: an embedding, the blocks, and the norm with the head; FLOPs count a multiplication and an addition as two."""
    size, hidden = decoder.bytes_per_weight, decoder.hidden
    kv_width = hidden * decoder.kv_heads // decoder.heads
    block = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * decoder.feed_forward + 2 * hidden
    table = decoder.vocabulary * hidden
    layers = [
        Layer(
            index=0,
            name="embedding",
            kind=LayerKind.EMBEDDING,
            weight_bytes=table * size,
            read_bytes_per_token=hidden * size,
            flops_per_token=float(hidden),
            boundary_bytes_per_token=hidden * size,
        )
    ]
    layers += [
        Layer(
            index=number + 1,
            name=f"block {number}",
            weight_bytes=block * size,
            flops_per_token=2.0 * block,
            flops_per_token_and_context=4.0 * hidden,
            kv_bytes_per_token=2 * kv_width * size,
            boundary_bytes_per_token=hidden * size,
        )
        for number in range(decoder.blocks)
    ]
    layers.append(
        Layer(
            index=decoder.blocks + 1,
            name="norm and head",
            kind=LayerKind.HEAD,
            weight_bytes=(table + hidden) * size,
            flops_per_token=2.0 * table,
            boundary_bytes_per_token=8,
        )
    )
    digest = hashlib.sha256(repr(decoder).encode()).hexdigest()
    dtype = {2: "bfloat16", 4: "float32"}[size]
    return Profile(model=decoder.name, digest=digest, dtype=dtype, layers=tuple(layers), runtime_bytes=RUNTIME_BYTES)
