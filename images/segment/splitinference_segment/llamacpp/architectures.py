"""Which GGUF architectures can be cut, where, and what a slice has to say differently. Each is tested (docs/reference/llamacpp.md).

libllama numbers the blocks of a file from 0, and some of what it computes depends on the number or on how many there are. A slice states
it where the format has a key for it; where it has none, the cut is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.gguf_files.gguf_models import CUT_EVERY, UNSPLIT_BLOCKS
from splitinference_modelfiles.stored.headers import ModelRefusedError


@dataclass(frozen=True)
class Architecture:
    """How a slice of one architecture differs from a whole model.

    `window_period`: where the metadata does not say, each so many-th block attends to everything, the others to a window. `window`: of so
    many tokens where the metadata does not say; None: there is no window then. `needs_head`: libllama wants a head in the file, tied or
    not. `scales_input`: it multiplies whatever comes in by the square root of the width; `scales_embedding`: only embeddings of tokens.
    """

    window_period: int = 0
    window: int | None = None
    needs_head: bool = False
    scales_input: bool = False
    scales_embedding: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(),
    "qwen2": Architecture(),
    "qwen2moe": Architecture(needs_head=True),
    "qwen3": Architecture(),
    "qwen3moe": Architecture(),
    "gemma2": Architecture(window_period=2, window=4096, scales_input=True),
    "gemma3": Architecture(window_period=6, scales_embedding=True),
    "phi3": Architecture(),
    "gpt-oss": Architecture(window_period=2, window=128, needs_head=True),
    "smollm3": Architecture(),
}

PER_BLOCK = ("attention.head_count", "attention.head_count_kv", "feed_forward_length", "expert_feed_forward_length")
"""Keys whose value may be a list with an entry for each block."""


def architecture_of(metadata: Mapping[str, Any]) -> Architecture:
    """ModelRefusedError for one that is not in the table."""
    name = str(metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise ModelRefusedError(f"GGUF architecture {name[:40]!r} is not served; these are: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def check_cut(name: str, blocks: range, count: int) -> None:
    """ModelRefusedError where libllama would compute something else from blocks [start, stop) of `count` alone."""
    if len(blocks) == count:
        return
    unsplit, every = UNSPLIT_BLOCKS.get(name), CUT_EVERY.get(name, 1)
    if unsplit in (count, len(blocks)):
        raise ModelRefusedError(
            f"blocks {blocks.start} to {blocks.stop} of {count}: libllama takes a model of {unsplit} blocks for another "
            "size, with another attention scale; such a model is served unsplit"
        )
    for edge in (blocks.start, blocks.stop):
        if edge % every and edge != count:
            raise ModelRefusedError(f"the model cannot be cut before block {edge}: cuts are at multiples of {every}")


@dataclass(frozen=True)
class Windows:
    """Attention windows as a slice states them: of how many tokens, and for each block whether it has one. None: the slice has none."""

    tokens: int
    blocks: tuple[bool, ...]


EVERYTHING = 1 << 30
"""A window that no context reaches."""


def windows_of(architecture: Architecture, metadata: Mapping[str, Any], blocks: range, count: int) -> Windows | None:
    """Those of blocks [start, stop) of `count`.

    libllama ends where an architecture has windows and no block of the file has one. Then each gets a window that is never full; Gemma 3,
    whose blocks with a window have a RoPE of their own, can do without.
    """
    name = metadata["general.architecture"]
    tokens = metadata.get(f"{name}.attention.sliding_window", architecture.window)
    if not architecture.window_period or not tokens:
        return None
    stated = metadata.get(f"{name}.attention.sliding_window_pattern")
    if isinstance(stated, list):
        pattern = [bool(each) for each in stated]
    else:
        period = stated if type(stated) is int else architecture.window_period
        pattern = [period == 0 or block % period < period - 1 for block in range(count)]
    if len(pattern) < count:
        raise ModelRefusedError(f"{name}.attention.sliding_window_pattern has {len(pattern)} entries for {count} blocks")
    own = tuple(pattern[blocks.start : blocks.stop])
    if any(own):
        return Windows(int(tokens), own)
    return None if architecture.window is None else Windows(EVERYTHING, (True,) * len(own))
