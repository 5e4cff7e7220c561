"""KV handed over between segments: whatever the old and the new split points, the tokens go on as the unsplit model's."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from in_process import DIGEST, Chain, Network, Parts, Stage
from random_models import CONFIGS, unsplit_greedy

from splitinference_protocol.wire import answers
from splitinference_protocol.wire.request import Hop
from splitinference_segment.cache.kv_transfer import blocks_of, parts_from
from splitinference_segment.torch_models.layers import Layers

BEFORE, BETWEEN, AFTER = 5, 3, 12  # tokens until the copy, until the switch, after it


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def handed_over(parts: Parts, network: Network, prompt: Sequence[int], old_cuts: Sequence[int], new_cuts: Sequence[int]) -> list[int]:
    """Tokens of a sequence that begins on the old split and, after a copy ahead and a delta, goes on at the new one."""
    old, new = parts.chain(network, "old", old_cuts), parts.chain(network, "new", new_cuts)
    tokens = list(prompt)
    copied = old.greedy(tokens, 0, BEFORE)
    new.take_over(old, 0, copied)
    held = old.greedy(tokens, copied, BETWEEN)
    new.take_over(old, copied, held - copied)
    new.greedy(tokens, held, AFTER)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_every_pair_of_split_points_goes_on_with_the_unsplit_models_tokens(
    name: str, models: dict[str, Path], prompt: list[int], network: Network
) -> None:
    last = CONFIGS[name].num_hidden_layers + 2
    expected = unsplit_greedy(models[name], prompt, BEFORE + BETWEEN + AFTER)
    parts = Parts(models[name])
    for old, new in itertools.product(range(1, last), repeat=2):
        assert handed_over(parts, network, prompt, [0, old, last], [0, new, last]) == expected, f"from a cut at {old} to one at {new}"


@pytest.mark.parametrize(
    ("old", "new"), [([0, 2, 4, 7], [0, 7]), ([0, 7], [0, 2, 4, 7]), ([0, 1, 3, 5, 7], [0, 2, 6, 7]), ([0, 4, 7], [0, 1, 2, 3, 4, 5, 6, 7])]
)
def test_segments_that_grow_and_shrink_take_their_layers_from_as_many_as_hold_them(
    old: list[int], new: list[int], models: dict[str, Path], prompt: list[int], network: Network
) -> None:
    expected = unsplit_greedy(models["llama"], prompt, BEFORE + BETWEEN + AFTER)
    assert handed_over(Parts(models["llama"]), network, prompt, old, new) == expected


def test_kv_comes_over_bit_for_bit_in_chunks(models: dict[str, Path], network: Network) -> None:
    old = Parts(models["llama"]).chain(network, "old", [0, 3, 7])
    new = Stage(network, Layers(models["llama"], 0, 7, torch.float32), "new-0-7", chunk_bytes=40 * 2 * 5 * 2 * 16 * 4)
    old.step([(i * 31) % 211 for i in range(100)], 0)
    assert new.pull("s", 0, 100, [stage.hop for stage in old.stages])["bytes"] == 100 * 2 * 5 * 2 * 16 * 4
    assert [(position, tokens) for name, position, tokens in network.exported if name == "old-0-3"] == [(0, 40), (40, 40), (80, 20)]
    whole = torch.cat([stage.table.read("s", 100)[:, :, :, :100] for stage in old.stages], dim=1)
    assert torch.equal(new.table.read("s", 100)[:, :, :, :100], whole)


def test_what_a_source_does_not_hold_is_kv_missing_and_what_came_before_stays(models: dict[str, Path], network: Network) -> None:
    parts = Parts(models["llama"])
    old, new = parts.chain(network, "old", [0, 3, 7]), parts.chain(network, "new", [0, 4, 7])
    sources = [stage.hop for stage in old.stages]
    old.step(range(20), 0)
    stage = new.stages[1]
    assert stage.pull("s", 0, 10, sources)["held"] == 10
    assert stage.pull("s", 10, 11, sources)["error"]["code"] == "kv_missing"
    assert stage.pull("s", 10, 10, sources)["held"] == 20
    assert stage.pull("s", 10, 10, sources)["error"]["code"] == "kv_missing"  # the same again: it holds 20 now
    assert stage.pull("other", 0, 1, sources)["error"]["code"] == "kv_missing"


def test_layers_that_nobody_holds_and_sources_that_are_gone_are_told(models: dict[str, Path], network: Network) -> None:
    parts = Parts(models["llama"])
    old, new = parts.chain(network, "old", [0, 3, 7]), parts.chain(network, "new", [0, 4, 7])
    old.step(range(20), 0)
    answer = new.stages[0].pull("s", 0, 20, [old.stages[0].hop])
    assert answer["error"] == {"code": "kv_missing", "message": "layer 3 is with none of old-0-3", "segment": "new-0-4"}
    network.broken.add("old-3-7")
    assert new.stages[1].pull("s", 0, 20, [stage.hop for stage in old.stages])["error"]["code"] == "next_hop_failed"
    assert new.stages[1].table.use().sequences == 0


def test_kv_of_another_dtype_or_model_is_refused(models: dict[str, Path], network: Network) -> None:
    old = Stage(network, Layers(models["llama"], 0, 7, torch.bfloat16), "old-0-7")
    new = Stage(network, Layers(models["llama"], 0, 7, torch.float32), "new-0-7")
    Chain([old]).step(range(4), 0)
    answer = new.pull("s", 0, 4, [old.hop])
    assert answer["error"]["code"] == "wrong_segment"
    assert "bfloat16" in answer["error"]["message"]
    assert new.pull("s", 0, 4, [Hop("old-0-7", "seg-ffff0000-0-7")])["error"]["code"] == "kv_missing"


def test_no_room_is_kv_full_and_leaves_nothing(models: dict[str, Path], network: Network) -> None:
    layers = Layers(models["llama"], 0, 7, torch.float32)
    old, new = Stage(network, layers, "old-0-7"), Stage(network, layers, "new-0-7", kv_tokens=50)
    Chain([old]).step(range(60), 0)
    assert new.pull("s", 0, 60, [old.hop])["error"]["code"] == "kv_full"
    assert (new.table.use().sequences, new.table.use().total_bytes) == (0, 0)


def test_blocks_outside_a_segment_are_refused(models: dict[str, Path], network: Network) -> None:
    stage = Stage(network, Layers(models["llama"], 2, 4, torch.float32), "old-2-4")
    for blocks in ([0, 2], [2, 4], [1, 1], [3, 1]):
        meta = answers.question("kv_export", sequence="s", position=0, tokens=1, blocks=blocks)
        assert stage.asked(meta)["error"]["code"] == "wrong_segment"


def test_the_blocks_of_a_segment_leave_out_embedding_and_head() -> None:
    assert [list(blocks_of(f"seg-{DIGEST}-{r}", DIGEST, 7)) for r in ("0-1", "0-3", "3-5", "5-7", "6-7", "0-7")] == [
        [],
        [0, 1],
        [2, 3],
        [4],
        [],
        [0, 1, 2, 3, 4],
    ]
    assert list(blocks_of("seg-ffff-0-7", DIGEST, 7)) == []
    assert list(blocks_of("nonsense", DIGEST, 7)) == []


def test_each_block_comes_once_from_the_first_source_that_has_it() -> None:
    sources = [Hop("a", f"seg-{DIGEST}-0-4"), Hop("b", f"seg-{DIGEST}-2-5"), Hop("c", f"seg-{DIGEST}-5-7")]
    parts = parts_from(range(1, 5), sources, DIGEST, 7)
    assert [(part.source.segment, part.start, part.end) for part in parts] == [("a", 1, 3), ("b", 3, 4), ("c", 4, 5)]
    assert parts_from(range(0), [], DIGEST, 7) == ()
