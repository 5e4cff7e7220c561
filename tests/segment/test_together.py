"""Decode steps of several sequences attend side by side: the numbers are those of each alone, whatever their lengths and windows."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from random_models import CONFIGS

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.attention import Row
from splitinference_segment.torch_ops.spans import Span
from splitinference_segment.torch_ops.together import ROOM_BYTES, side_by_side

UNLIKE = (3, 40, 41, 7, 120, 16, 100)


def spans(layers: Layers, positions: Sequence[int], tokens: int = 1) -> list[Span]:
    """Sequences that hold random KV, the same for the same position; each asks for `tokens` more."""
    made = []
    for i, position in enumerate(positions):
        entry = KvEntry(str(i), layers.kv_shape.allocate(128))
        generator = torch.Generator().manual_seed(position)
        entry.buffer.copy_(torch.randn(entry.buffer.shape, generator=generator))
        entry.buffer[..., position:, :] = float("nan")  # nobody may look at what is not written yet
        made.append(Span(entry, i * tokens, tokens, position))
    return made


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("positions", [UNLIKE, (5, 5), (9, 10, 11, 12, 13, 14, 15, 16), (100, 4)])
def test_a_batch_gives_each_sequence_what_it_gets_alone(name: str, positions: Sequence[int], models: dict[str, Path]) -> None:
    layers = Layers(models[name], 1, 6, torch.float32)
    values = torch.randn(len(positions), layers.hidden, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        apart = spans(layers, positions)
        for i, span in enumerate(apart):
            span.start = 0
            expected = layers.run(values[i : i + 1], [span])
            apart[i].start = i
            torch.testing.assert_close(layers.run(values, spans(layers, positions))[i : i + 1], expected, rtol=1e-4, atol=1e-4)
        batch = spans(layers, positions)
        layers.run(values, batch)
    for one, other in zip(apart, batch, strict=True):
        torch.testing.assert_close(one.entry.buffer, other.entry.buffer, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_pasts_of_unlike_lengths_are_not_laid_beside_each_other(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 1, 6, torch.float32)

    def groups(*positions: int) -> tuple[list[list[int]], list[int]]:
        """Positions of those that attend together, and of those that attend alone."""
        row = Row(spans(layers, positions), 0)
        return [[positions[start] for start in group.rows.tolist()] for group in row.together], [span.position for span in row.alone]

    assert groups(5) == ([], [5])
    assert groups(5, 6) == ([[5, 6]], [])
    assert groups(120, 5, 110) == ([[110, 120]], [5])
    assert groups(0, 64, 1) == ([[0, 1, 64]], [])
    assert groups(40, 1, 90, 110) == ([[1, 40], [90, 110]], [])


def test_the_memory_that_pasts_take_side_by_side_is_bounded(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 1, 6, torch.float32)
    most = ROOM_BYTES // (2 * 4 * layers.kv_shape.heads * layers.kv_shape.width)
    entry = KvEntry("s", layers.kv_shape.allocate(1))  # what a row looks at is the shape
    two, three = most // 2 - 1, most // 3 - 1
    assert [group.rows.tolist() for group in side_by_side([Span(entry, i, 1, three) for i in range(4)])] == [[0, 1, 2]]
    assert [group.rows.tolist() for group in side_by_side([Span(entry, i, 1, two) for i in range(4)])] == [[0, 1], [2, 3]]
    assert side_by_side([Span(entry, i, 1, most) for i in range(4)]) == ()


def test_a_prefill_beside_decode_steps_attends_alone(models: dict[str, Path]) -> None:
    layers = Layers(models["llama"], 1, 6, torch.float32)
    decoding = spans(layers, [9, 12])
    prefill = Span(KvEntry("p", layers.kv_shape.allocate(128)), 2, 5, 0)
    values = torch.randn(7, layers.hidden, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        mixed = layers.run(values, [*decoding, prefill])
        alone = layers.run(values[2:], [Span(KvEntry("p", layers.kv_shape.allocate(128)), 0, 5, 0)])
        both = layers.run(values[:2], spans(layers, [9, 12]))
    torch.testing.assert_close(mixed[2:], alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mixed[:2], both, rtol=1e-4, atol=1e-4)
