"""The KV table: what it holds, what it refuses, what it forgets."""

import pytest
import torch

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import Prefix
from splitinference_segment.cache.kv import FIRST_CAPACITY, KvEntry, KvLimits, KvTable
from splitinference_segment.torch_ops.kv_torch import KvShape

SHAPE = KvShape(blocks=2, heads=1, width=4, dtype=torch.float32)
PER_TOKEN = 2 * 2 * 1 * 4 * 4


def a_table(sequences: int = 4, tokens: int = 10_000, context: int = 512, idle: float = 60.0, evict: float = 10.0) -> KvTable:
    return KvTable(SHAPE, KvLimits(sequences, tokens * PER_TOKEN, context, idle, evict))


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
    assert SHAPE.capacity(entry.buffer) == FIRST_CAPACITY
    entry.buffer[:, :, :, :100] = 3.0
    step(table, "a", 100, 100)
    assert SHAPE.capacity(entry.buffer) == 2 * FIRST_CAPACITY
    assert bool((entry.buffer[:, :, :, :100] == 3.0).all())
    assert table.use().total_bytes == 2 * FIRST_CAPACITY * PER_TOKEN


def test_a_buffer_is_never_larger_than_the_longest_context() -> None:
    assert SHAPE.capacity(step(a_table(context=150), "a", 0, 140).buffer) == 150


def test_a_position_that_is_not_held_is_kv_missing_with_both_numbers() -> None:
    table = a_table()
    step(table, "a", 0, 5)
    for sequence, position, held in (("a", 4, 5), ("a", 6, 5), ("b", 1, 0)):
        with pytest.raises(SegmentError, match=f"holds {held} tokens here, the step expects {position}") as caught:
            table.begin(sequence, position, 1, 0.0)
        assert caught.value.code == "kv_missing"


def test_tokens_of_drafts_that_were_wrong_are_dropped_where_they_are_held() -> None:
    table = a_table()
    step(table, "a", 0, 5)
    step(table, "a", 5, 4)  # a token and three drafts, of which one is right
    entry = table.begin("a", 7, 1, 0.0, None, 2)
    assert entry.length == 7
    table.end(entry, 1, 0.0)
    assert step(table, "a", 8, 1).length == 9
    assert table.begin("a", 9, 1, 0.0, None, 2).length == 9, "a segment that was handed the sequence over never held them"


@pytest.mark.parametrize(("position", "drop"), [(7, 0), (7, 1), (7, 3), (10, 2), (6, 2)])
def test_nothing_else_is_dropped(position: int, drop: int) -> None:
    table = a_table()
    step(table, "a", 0, 9)
    with pytest.raises(SegmentError, match=f"holds 9 tokens here, the step expects {position}"):
        table.begin("a", position, 1, 0.0, None, drop)


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
    assert SHAPE.capacity(step(table, "b", 0, 40).buffer) == 44  # all that is left
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


def test_sequences_that_nobody_steps_give_way_to_others_the_longest_idle_first() -> None:
    """A peer holds all sequences with one token each: the next ones are served, and whoever was given up is told so."""
    table = a_table(sequences=4)
    for number in range(4):
        step(table, f"held-{number}", 0, 1, now=float(number))
    with pytest.raises(SegmentError) as full:
        step(table, "new", 0, 5, now=9.0)
    assert full.value.code == "kv_full", "none of them is idle for long"
    step(table, "new", 0, 5, now=10.5)
    step(table, "held-2", 1, 1, now=10.6)
    step(table, "another", 0, 5, now=11.5)
    with pytest.raises(SegmentError) as missing:
        table.begin("held-0", 1, 1, 12.0)
    assert missing.value.code == "kv_missing"
    assert (table.use().sequences, table.use().evicted) == (4, 2)
    assert step(table, "held-2", 2, 1, now=12.0).length == 3, "it was stepped, so it stayed"


def test_bytes_are_taken_from_the_longest_idle_and_only_as_many_as_are_needed() -> None:
    table = a_table(sequences=8, tokens=3 * FIRST_CAPACITY)
    for number in range(3):
        step(table, f"held-{number}", 0, 1, now=float(number))
    step(table, "new", 0, 100, now=20.0)
    assert table.use().evicted == 1
    step(table, "held-1", 1, 1, now=20.0)


def test_a_sequence_that_is_being_stepped_is_never_given_up() -> None:
    table = a_table(sequences=1)
    entry = table.begin("busy", 0, 1, 0.0)
    with pytest.raises(SegmentError) as full:
        table.begin("new", 0, 1, 1000.0)
    assert full.value.code == "kv_full"
    table.end(entry, 1, 1000.0)


def test_what_was_kept_of_an_ended_sequence_cannot_be_read_by_the_sequences_name() -> None:
    table = a_table()
    step(table, "s", 0, 100)
    table.release("s", Prefix(50, ("a", "b")))
    assert table.use().kept_bytes > 0
    with pytest.raises(SegmentError) as missing:
        table.read("s", 1)
    assert missing.value.code == "kv_missing"
