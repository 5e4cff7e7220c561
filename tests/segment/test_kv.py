"""The KV table: what it holds, what it refuses, what it forgets."""

import pytest
import torch

from splitinference_segment.kv import FIRST_CAPACITY, KvEntry, KvLimits, KvShape, KvTable
from splitinference_segment.protocol import SegmentError

SHAPE = KvShape(blocks=2, heads=1, width=4, dtype=torch.float32)
PER_TOKEN = 2 * 2 * 1 * 4 * 4


def a_table(sequences: int = 4, tokens: int = 10_000, context: int = 512, idle: float = 60.0) -> KvTable:
    return KvTable(SHAPE, KvLimits(sequences, tokens * PER_TOKEN, context, idle))


def step(table: KvTable, sequence: str, position: int, tokens: int, now: float = 0.0) -> KvEntry:
    entry = table.begin(sequence, position, tokens, now)
    table.end(entry, tokens, now)
    return entry


def test_bytes_per_token_count_keys_and_values_of_all_blocks() -> None:
    assert SHAPE.bytes_per_token == PER_TOKEN
    assert SHAPE.allocate(10).nbytes == 10 * PER_TOKEN


def test_a_sequence_grows_by_doubling_and_keeps_what_it_holds() -> None:
    table = a_table()
    entry = step(table, "a", 0, 100)
    assert entry.capacity == FIRST_CAPACITY
    entry.buffer[:, :, :, :100] = 3.0
    step(table, "a", 100, 100)
    assert entry.capacity == 2 * FIRST_CAPACITY
    assert bool((entry.buffer[:, :, :, :100] == 3.0).all())
    assert table.use().total_bytes == 2 * FIRST_CAPACITY * PER_TOKEN


def test_a_buffer_is_never_larger_than_the_longest_context() -> None:
    assert step(a_table(context=150), "a", 0, 140).capacity == 150


def test_a_position_that_is_not_held_is_kv_missing_with_both_numbers() -> None:
    table = a_table()
    step(table, "a", 0, 5)
    for sequence, position, held in (("a", 4, 5), ("a", 6, 5), ("b", 1, 0)):
        with pytest.raises(SegmentError, match=f"holds {held} tokens here, the step expects {position}") as caught:
            table.begin(sequence, position, 1, 0.0)
        assert caught.value.code == "kv_missing"


def test_position_zero_starts_a_sequence_anew() -> None:
    table = a_table()
    step(table, "a", 0, 5)
    step(table, "a", 0, 3)
    assert step(table, "a", 3, 1).length == 4
    assert table.use().sequences == 1


def test_a_failed_step_leaves_the_length_as_it_was() -> None:
    table = a_table()
    step(table, "a", 0, 5)
    table.end(table.begin("a", 5, 1, 0.0), 0, 0.0)
    assert step(table, "a", 5, 1).length == 6


def test_beyond_the_longest_context_is_a_bad_request() -> None:
    with pytest.raises(SegmentError, match="beyond the longest context, 512") as caught:
        a_table().begin("a", 0, 513, 0.0)
    assert caught.value.code == "bad_request"


def test_too_many_sequences_are_kv_full_and_those_held_stay() -> None:
    table = a_table(sequences=2)
    step(table, "a", 0, 1)
    step(table, "b", 0, 1)
    with pytest.raises(SegmentError, match="2 sequences are held, the limit is 2") as caught:
        table.begin("c", 0, 1, 1.0)
    assert caught.value.code == "kv_full"
    assert step(table, "a", 1, 1).length == 2


def test_the_byte_budget_holds_and_the_last_of_it_can_be_used() -> None:
    table = a_table(tokens=300)
    step(table, "a", 0, 200)  # 256 allocated
    assert step(table, "b", 0, 40).capacity == 44  # all that is left
    with pytest.raises(SegmentError) as caught:
        table.begin("b", 40, 5, 0.0)
    assert caught.value.code == "kv_full"
    assert table.use().total_bytes <= 300 * PER_TOKEN


def test_a_sequence_that_never_fitted_leaves_nothing() -> None:
    table = a_table(tokens=50)
    with pytest.raises(SegmentError):
        table.begin("a", 0, 60, 0.0)
    assert table.use().sequences == 0


def test_idle_sequences_are_forgotten_but_not_those_at_work() -> None:
    table = a_table(idle=60.0)
    step(table, "a", 0, 1, now=0.0)
    table.begin("b", 0, 1, now=0.0)
    assert table.forget_idle(now=59.0) == 0
    assert table.forget_idle(now=61.0) == 1
    assert table.use().sequences == 1


def test_a_full_table_forgets_the_idle_to_take_a_new_sequence() -> None:
    table = a_table(sequences=1, idle=60.0)
    step(table, "a", 0, 1, now=0.0)
    assert step(table, "b", 0, 1, now=100.0).length == 1


def test_release_is_harmless_twice() -> None:
    table = a_table()
    step(table, "a", 0, 1)
    assert table.release("a")
    assert not table.release("a")
    assert table.use().total_bytes == 0


def test_a_segment_without_blocks_still_counts_positions() -> None:
    table = KvTable(KvShape(0, 1, 4, torch.float32), KvLimits(2, 0, 64, 60.0))
    step(table, "a", 0, 5)
    with pytest.raises(SegmentError):
        table.begin("a", 4, 1, 0.0)
    assert step(table, "a", 5, 1).length == 6
