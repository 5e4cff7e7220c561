"""A sequence that begins as another one did takes over its KV: the tokens are the unsplit model's, and nobody's room is taken."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from in_process import Chain, Network, Parts
from random_models import CONFIGS, unsplit_greedy

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import Prefix
from splitinference_segment.cache.kv import MOST_KEPT, KvLimits, KvTable
from splitinference_segment.torch_ops.kv_torch import KvShape

BLOCK = 4
COUNT = 12
SHAPE = KvShape(blocks=2, heads=1, width=4, dtype=torch.float32)


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def named(tokens: Sequence[int], block: int = BLOCK) -> Prefix:
    """A name for each whole block, which stands for all tokens up to its end."""
    return Prefix(block, tuple(str(hash(tuple(tokens[:end]))) for end in range(block, len(tokens) + 1, block)))


def release(chain: Chain, sequence: str, prefix: Prefix | None) -> None:
    for stage in chain.stages:
        stage.table.release(sequence, prefix)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_at_every_split_point_a_reused_beginning_gives_the_unsplit_models_tokens(
    name: str, ended: bool, models: dict[str, Path], prompt: list[int], network: Network
) -> None:
    last, parts = CONFIGS[name].num_hidden_layers + 2, Parts(models[name])
    other = [*prompt[:13], 9, 8, 7]
    expected = unsplit_greedy(models[name], other, COUNT)
    for cut in range(1, last):
        chain, tokens = parts.chain(network, "a", [0, cut, last]), list(prompt)
        chain.greedy(tokens, 0, 5, "first", named(prompt))
        if ended:
            release(chain, "first", named(tokens))
        again = list(other)
        chain.greedy(again, 12, COUNT, "second", named(other))  # three blocks of four are the same
        assert again[len(other) :] == expected, f"cut at {cut}"
        if not ended:  # the one that gave goes on as if nothing had happened
            chain.greedy(tokens, len(tokens) - 1, COUNT - 5, "first")
            assert tokens[len(prompt) :] == unsplit_greedy(models[name], prompt, COUNT)
        assert {stage.table.use().reused_tokens for stage in chain.stages} == {12}


def a_table(sequences: int = 4, tokens: int = 10_000, idle: float = 60.0) -> KvTable:
    return KvTable(SHAPE, KvLimits(sequences, tokens * SHAPE.bytes_per_token, 512, idle))


def run(table: KvTable, sequence: str, tokens: int, prefix: Prefix | None = None, *, position: int = 0, now: float = 0.0) -> None:
    table.end(table.begin(sequence, position, tokens, now, prefix), tokens, now)


def test_what_is_kept_counts_apart_and_takes_no_more_than_its_blocks() -> None:
    table = a_table()
    run(table, "a", 10, named(range(10)))
    table.release("a", named(range(10)))
    use = table.use()
    assert (use.sequences, use.total_bytes, use.kept_bytes) == (0, 0, 8 * SHAPE.bytes_per_token)


def test_without_a_name_or_a_whole_block_nothing_is_kept() -> None:
    table = a_table()
    run(table, "a", 10)
    table.release("a")
    run(table, "b", 3)
    table.release("b", named(range(10)))
    assert table.use().kept_bytes == 0


def test_the_same_beginning_is_kept_once_and_the_longer_one_replaces_the_shorter() -> None:
    table = a_table()
    for sequence, tokens in (("a", 8), ("b", 8), ("c", 16), ("d", 12)):
        run(table, sequence, tokens)
        table.release(sequence, named(range(tokens)))
    assert table.use().kept_bytes == 16 * SHAPE.bytes_per_token


def test_what_is_kept_is_forgotten_first_when_room_is_needed_least_used_first() -> None:
    table = a_table(tokens=200)
    prompts = [[i, *range(1, 64)] for i in range(2)]
    for i, prompt in enumerate(prompts):
        run(table, f"s{i}", 64)
        table.release(f"s{i}", named(prompt))
    assert table.use().kept_bytes == 128 * SHAPE.bytes_per_token
    run(table, "again", 1, named(prompts[0]), position=64)  # a buffer of 128: only one of the two has room beside it
    assert table.use().kept_bytes == 64 * SHAPE.bytes_per_token
    with pytest.raises(SegmentError, match="no sequence that begins with the same 64 tokens is held") as caught:
        table.begin("other", 64, 1, 0.0, named(prompts[1]))
    assert caught.value.code == "kv_missing"
    table.release("again")
    run(table, "large", 200)
    assert (table.use().sequences, table.use().kept_bytes) == (1, 0)


def test_a_beginning_that_is_not_whole_blocks_is_a_bad_request() -> None:
    table = a_table()
    run(table, "a", 16, named(range(16)))
    for position in (3, 20):
        with pytest.raises(SegmentError) as caught:
            table.begin("b", position, 1, 0.0, named(range(16)))
        assert caught.value.code == "bad_request"


def test_a_sequence_gives_only_what_it_holds_already() -> None:
    table = a_table()
    run(table, "a", 5, named(range(16)))
    run(table, "b", 1, named(range(16)), position=4)
    with pytest.raises(SegmentError):
        table.begin("c", 8, 1, 0.0, named(range(16)))


def test_what_is_kept_is_forgotten_when_nobody_uses_it_and_never_more_than_so_many() -> None:
    table = a_table(idle=60.0)
    for i in range(MOST_KEPT + 10):
        run(table, f"s{i}", 4)
        table.release(f"s{i}", named([i, 0, 0, 0]))
    assert table.use().kept_bytes == 4 * MOST_KEPT * SHAPE.bytes_per_token
    table.forget_idle(now=61.0)
    assert table.use().kept_bytes == 0


def test_stages_without_blocks_agree_like_all_others() -> None:
    table = KvTable(KvShape(0, 0, 0, torch.float32), KvLimits(2, 0, 64, 60.0))
    run(table, "a", 9)
    table.release("a", named(range(9)))
    run(table, "b", 1, named(range(9)), position=8)
    with pytest.raises(SegmentError):
        table.begin("c", 8, 1, 0.0, named(range(1, 10)))
