"""Chains of 1, 2, 3 and 5 slices give the unsplit llama.cpp's logits, bit for bit where the boundary is float32."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chains import Chain, Stage, cuts
from random_gguf import BLOCKS, VOCABULARY, make
from unsplit import Unsplit, same

from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_protocol.wire.request import Prefix
from splitinference_segment.llamacpp.slices import cut, open_model, write

ARCHITECTURES = ("llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma3", "phi3", "gpt-oss")
TOKENS = [(7 * i * i + 3 * i + 1) % VOCABULARY for i in range(80)]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models"), request.param)


@pytest.fixture
def unsplit(model: Path) -> Iterator[Unsplit]:
    made = Unsplit(model)
    yield made
    made.model.close()


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
def test_a_prefill_in_chunks_and_decode_steps(model: Path, unsplit: Unsplit, segments: int) -> None:
    chain = Chain(model, cuts(BLOCKS, segments))
    held = 0
    for count in (20, 7, *[1] * 12):  # beyond the window of 8
        tokens = TOKENS[held : held + count]
        same(chain.logits(tokens, held), unsplit.last(tokens, held))
        held += count
    chain.close()


def test_decode_steps_of_several_sequences_together(model: Path, unsplit: Unsplit) -> None:
    chain = Chain(model, cuts(BLOCKS, 3))
    lengths = {"a": 5, "b": 11, "c": 3}
    for number, (name, length) in enumerate(lengths.items()):
        same(chain.logits(TOKENS[:length], 0, name), unsplit.last(TOKENS[:length], 0, number))
    for step in range(4):
        work = {name: ([TOKENS[20 + step + number]], length + step) for number, (name, length) in enumerate(lengths.items())}
        expected = unsplit.step([(tokens[0], position, number) for number, (tokens, position) in enumerate(work.values())])
        for line, found in zip(expected, chain.run(work).values(), strict=True):
            same(found.logits, line)
    chain.close()


def test_a_sequence_that_begins_anew_or_was_cut(model: Path, unsplit: Unsplit) -> None:
    """Replay: position 0 again. A step that failed after some stages had run: its tokens are gone."""
    chain = Chain(model, cuts(BLOCKS, 3))
    chain.logits(TOKENS[40:70], 0)
    same(chain.logits(TOKENS[:20], 0), unsplit.last(TOKENS[:20], 0))
    first = chain.stages[0]
    entry = first.table.begin("s", 20, 5, 0.0)
    first.engine.kv_shape.settle()
    _run_alone(first, TOKENS[50:55], 20)
    first.table.end(entry, 0, 0.0)  # it counts for nothing
    same(chain.logits(TOKENS[20:23], 20), unsplit.last(TOKENS[20:23], 20))
    chain.close()


def _run_alone(stage: Stage, tokens: list[int], position: int) -> None:
    """Rows in the context that the table knows nothing of."""
    slot = stage.table.read("s", position).slot
    hidden = stage.engine._looked_up(np.array(tokens))
    count = len(tokens)
    stage.engine._model.decode(
        count, tokens=None, hidden=hidden, positions=np.arange(position, position + count, dtype=np.int32),
        sequences=np.full(count, slot, np.int32), wanted=np.ones(count, np.int8), out=np.empty_like(hidden),
    )  # fmt: skip


def test_a_hand_over_between_other_cuts(model: Path, unsplit: Unsplit) -> None:
    """KV moves while the old chain goes on; then the new one goes on as if it had computed everything."""
    stages: dict[str, Stage] = {}
    old = Chain(model, cuts(BLOCKS, 3), name="old", stages=stages)
    new = Chain(model, cuts(BLOCKS, 2), name="new", stages=stages)
    new.logits(TOKENS[50:60], 0, "other")  # cells of another sequence are in between
    old.logits(TOKENS[:30], 0)
    new.take_over(old, 0, 30)
    old.logits(TOKENS[30:35], 30)
    new.take_over(old, 30, 5)
    unsplit.last(TOKENS[:30], 0)
    unsplit.last(TOKENS[30:35], 30)
    for position in range(35, 40):
        same(new.logits(TOKENS[position : position + 1], position), unsplit.last(TOKENS[position : position + 1], position))
    old.close()
    new.close()


def test_a_prefix_of_another_sequence_is_used_again(model: Path, unsplit: Unsplit) -> None:
    chain = Chain(model, cuts(BLOCKS, 3))
    prefix = Prefix(8, ("one", "two"))
    chain.logits(TOKENS[:16], 0, "a", prefix)
    for stage in chain.stages:
        stage.table.release("a", prefix)
    unsplit.last(TOKENS[:16], 0)
    same(chain.logits(TOKENS[16:25], 16, "b", prefix), unsplit.last(TOKENS[16:25], 16))
    assert all(stage.table.use().reused_tokens == 16 for stage in chain.stages)
    chain.close()


def test_slices_as_files(model: Path, unsplit: Unsplit, tmp_path: Path) -> None:
    """What a node has to fetch is enough: each segment runs from a file of its own layers."""
    source, edges = open_model(model), cuts(BLOCKS, 3)
    whole = model.stat().st_size
    paths = []
    for start, end in itertools.pairwise(edges):
        part = cut(source, start, end)
        paths.append(tmp_path / f"{start}-{end}.gguf")
        write(source, part, paths[-1])
        fetched = sum(length for each in part.ranges().values() for _, length in each)
        assert fetched < whole * 0.6
        assert paths[-1].stat().st_size < whole * 0.8
    chains = [Chain(path, [start, end]) for path, (start, end) in zip(paths, itertools.pairwise(edges), strict=True)]
    chain = Chain(model, [])
    chain.stages = [each.stages[0] for each in chains]
    same(chain.logits(TOKENS[:20], 0), unsplit.last(TOKENS[:20], 0))
    with pytest.raises(ModelRefusedError, match=f"layers 0:{BLOCKS + 2} are not in"):
        cut(open_model(paths[1]), 0, BLOCKS + 2)
    chain.close()


@pytest.mark.parametrize(
    ("dtype", "encoding", "bound"), [("bfloat16", "none", 0.02), ("float16", "none", 0.005), ("bfloat16", "int8", 0.05)]
)
def test_links_that_round(model: Path, unsplit: Unsplit, dtype: str, encoding: str, bound: float) -> None:
    """Of three segments; relative to the spread of the logits. The bounds are those of docs/reference/llamacpp.md."""
    chain = Chain(model, cuts(BLOCKS, 3), dtype=dtype, encoding=encoding)
    found, expected = chain.logits(TOKENS[:40], 0), unsplit.last(TOKENS[:40], 0)
    error = float(np.sqrt(np.mean((found - expected) ** 2)) / expected.std())
    assert 0 < error < bound, error
    chain.close()
