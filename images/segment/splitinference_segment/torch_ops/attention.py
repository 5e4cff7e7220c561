"""Attention over the segment's own KV buffers, as an attention function that transformers' blocks call.

Tokens of several sequences stand one after another in one row, so every matrix product of a block runs once for all of them;
only here is the row taken apart, because each looks at its own past: decode steps of several sequences attend side by side (together.py),
everything else sequence by sequence.

For a step alone, up to SAME_AS_UNSPLIT tokens, the arithmetic is, operation for operation, that of transformers' own `sdpa` attention, so
that a split model gives bit for bit what the unsplit one gives. Its way of sharing keys among heads copies all of them, in float32, at each
step. Beyond that length, and in later chunks of a prefill, the heads that share keys go into one product instead, in float32 on CPUs: as
exact, rounded differently in the last bit, several times quicker, and twenty times as quick as torch's fused attention in bfloat16, whose
kernels need MKL.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from splitinference_segment.torch_ops.eager import attend_eagerly
from splitinference_segment.torch_ops.spans import Span
from splitinference_segment.torch_ops.together import Together, side_by_side, summed

NAME = "splitinference"
SAME_AS_UNSPLIT = 1024  # tokens of context


class Row:
    """What the blocks of this segment are run on: the spans, and the index of the segment's first block."""

    def __init__(self, spans: Sequence[Span], first_block: int) -> None:
        self.first_block = first_block
        self.spans = tuple(spans)
        self.together: tuple[Together, ...] = side_by_side(spans)
        taken = {start for group in self.together for start in group.rows.tolist()}
        self.alone = tuple(span for span in spans if span.start not in taken)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    row: Row | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Write the row's keys and values to the KV buffers and attend. query [1, heads, row, width] → [1, row, heads, width]."""
    if row is None or attention_mask is not None:
        raise TypeError("the blocks of a segment are called with `row` and without an attention mask")
    block = module.layer_idx - row.first_block
    if softcap is not None or s_aux is not None:
        parts = [
            _attend_eagerly(span, block, query, key, value, scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
            for span in row.spans
        ]
        return torch.cat(parts, dim=1), None
    if len(row.alone) == 1 and not row.together:
        return _attend_span(row.alone[0], block, query, key, value, scaling=scaling, window=sliding_window), None
    out = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    for span in row.alone:
        part = _attend_span(span, block, query, key, value, scaling=scaling, window=sliding_window)
        out[:, span.start : span.start + span.tokens] = part
    if row.together:
        written = torch.stack((key[0], value[0]))
        for group in row.together:
            out[0, group.rows] = group.attend(block, query, written, scaling=scaling, window=sliding_window)
    return out, None


def _attend_eagerly(
    span: Span, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, window: int | None, **settings: Any
) -> torch.Tensor:
    row, total = slice(span.start, span.start + span.tokens), span.position + span.tokens
    keys, values = span.entry.buffer[:, block]
    keys[:, span.position : total] = key[0, :, row]
    values[:, span.position : total] = value[0, :, row]
    return attend_eagerly(span.entry, block, query[:, :, row], span.mask(window, 1, query.device), **settings)


def _attend_span(
    span: Span, block: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None, window: int | None
) -> torch.Tensor:
    total = span.position + span.tokens
    keys, values = span.entry.buffer[:, block]
    row = slice(span.start, span.start + span.tokens)
    keys[:, span.position : total] = key[0, :, row]
    values[:, span.position : total] = value[0, :, row]
    heads, groups = query.shape[1], keys.shape[0]
    asked, shared = query[:, :, row], heads != groups
    if span.tokens == 1:  # one token sees all of its past: no mask
        first = 0 if window is None else max(0, total - window)
        past_keys, past_values = keys[None, :, first:total], values[None, :, first:total]
        if not shared or total <= SAME_AS_UNSPLIT:
            out = scaled_dot_product_attention(asked, past_keys, past_values, scale=scaling, enable_gqa=shared)
        else:
            asked = summed(asked.reshape(1, groups, heads // groups, -1))
            out = scaled_dot_product_attention(asked, summed(past_keys), summed(past_values), scale=scaling).to(query.dtype)
        return out.reshape(1, 1, heads, -1)
    past_keys, past_values = keys[None, :, :total], values[None, :, :total]
    plain = span.position == 0 and (window is None or total <= window)
    if plain and total <= SAME_AS_UNSPLIT:
        out = scaled_dot_product_attention(asked, past_keys, past_values, is_causal=True, scale=scaling, enable_gqa=shared)
        return out.transpose(1, 2)
    times = heads // groups
    mask = span.mask(window, times, query.device)
    asked = summed(asked).reshape(1, groups, times * span.tokens, -1)
    out = scaled_dot_product_attention(asked, summed(past_keys), summed(past_values), attn_mask=mask, scale=scaling)
    return out.reshape(1, heads, span.tokens, -1).to(query.dtype).transpose(1, 2)


AttentionInterface.register(NAME, attend)
