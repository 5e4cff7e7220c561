"""Attention of several sequences' decode steps at once: their pasts are laid side by side, filled up to the longest.

One by one, each step pays for a dozen small operations in every block; together they share them. Sums are taken in float32, so the numbers
are as exact; their order is another one, so that last bits may differ from a step that runs alone, as they do in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from splitinference_segment.torch_ops.spans import Span

LONGER = 2  # pasts up to so many times as long as the shortest one are laid beside it: the rest of its row is wasted
SHORT = 64  # tokens that may be wasted whatever the length
ROOM_BYTES = 16 << 20  # most memory for pasts side by side; where more is needed, computing counts for more than what is shared


def summed(values: torch.Tensor) -> torch.Tensor:
    """Values as sums over them are taken: float32 on CPUs; on GPUs, whose kernels see to that, as they are."""
    return values.float() if values.device.type == "cpu" else values


@dataclass(frozen=True, slots=True)
class _Room:
    """What the blocks of one step share: memory [2, sequences, groups, longest, width], and which of it is no one's past."""

    past: torch.Tensor
    first: tuple[int, ...]  # the first token that each sequence sees
    mask: torch.Tensor | None  # [sequences, 1, 1, longest], added to the scores


class Together:
    """Spans of one token each whose pasts are about as long."""

    def __init__(self, spans: Sequence[Span]) -> None:
        """Of at least two spans, whatever their order."""
        self._spans = tuple(spans)
        self._rooms: dict[int | None, _Room] = {}
        self.rows = torch.tensor([span.start for span in spans])

    def attend(self, block: int, query: torch.Tensor, written: torch.Tensor, *, scaling: float | None, window: int | None) -> torch.Tensor:
        """Write keys and values [2, groups, row, width] and attend. query [1, heads, row, width] → [sequences, heads, width]."""
        groups, width = written.shape[1], written.shape[3]
        room = self._room(window, groups, width, query)
        for i, (span, first) in enumerate(zip(self._spans, room.first, strict=True)):
            buffer = span.entry.buffer[:, block]
            buffer[:, :, span.position] = written[:, :, span.start]
            room.past[:, i, :, : span.position + 1 - first] = buffer[:, :, first : span.position + 1]
        asked = query[0].index_select(1, self.rows.to(query.device)).transpose(0, 1)
        heads = asked.shape[1]
        grouped = summed(asked.reshape(len(self._spans), groups, heads // groups, width))
        out = scaled_dot_product_attention(grouped, room.past[0], room.past[1], attn_mask=room.mask, scale=scaling)
        return out.reshape(len(self._spans), heads, width).to(query.dtype)

    def _room(self, window: int | None, groups: int, width: int, like: torch.Tensor) -> _Room:
        """Blocks with the same window see the same lengths, so they take turns in one room, and what is beyond a past stays zero."""
        if window not in self._rooms:
            totals = [span.position + 1 for span in self._spans]
            first = tuple(0 if window is None else max(0, total - window) for total in totals)
            seen = [total - begin for total, begin in zip(totals, first, strict=True)]
            longest = max(seen)
            mask = None
            if min(seen) < longest:
                beyond = torch.arange(longest)[None] >= torch.tensor(seen)[:, None]
                mask = summed(like.new_zeros(beyond.shape)).masked_fill_(beyond.to(like.device), -torch.inf)[:, None, None]
            past = summed(like.new_zeros(2, len(seen), groups, longest, width))
            self._rooms[window] = _Room(past, first, mask)
        return self._rooms[window]


def side_by_side(spans: Sequence[Span]) -> tuple[Together, ...]:
    """Decode steps that attend together. What is left out attends alone: prefills, and steps whose past is unlike the others'."""
    decoding = sorted((span for span in spans if span.tokens == 1), key=lambda span: span.position)
    found: list[list[Span]] = []
    for span in decoding:
        if found and _fits(span, found[-1]):
            found[-1].append(span)
        else:
            found.append([span])
    return tuple(Together(group) for group in found if len(group) > 1)


def _fits(span: Span, group: Sequence[Span]) -> bool:
    """Whether a span, no shorter than those of the group, may stand beside them."""
    _, _, groups, _, width = span.entry.buffer.shape
    room_bytes = 2 * 4 * groups * width * (span.position + 1) * (len(group) + 1)
    shortest = group[0].position
    return span.position <= max(LONGER * shortest, shortest + SHORT) and room_bytes <= ROOM_BYTES
