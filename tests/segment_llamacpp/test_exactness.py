"""Chains of 1, 2, 3 and 5 slices give the unsplit llama.cpp's logits, bit for bit where the boundary is float32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chains import Chain, cuts
from random_gguf import BLOCKS, VOCABULARY, make
from unsplit import Unsplit

ARCHITECTURES = ("llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "gemma3", "phi3", "gpt-oss")
TOKENS = [(7 * i * i + 3 * i + 1) % VOCABULARY for i in range(48)]


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
        np.testing.assert_array_equal(chain.logits(tokens, held), unsplit.last(tokens, held))
        held += count
    chain.close()


def test_decode_steps_of_several_sequences_together(model: Path, unsplit: Unsplit) -> None:
    chain = Chain(model, cuts(BLOCKS, 3))
    lengths = {"a": 5, "b": 11, "c": 3}
    for number, (name, length) in enumerate(lengths.items()):
        np.testing.assert_array_equal(chain.logits(TOKENS[:length], 0, name), unsplit.last(TOKENS[:length], 0, number))
    for step in range(4):
        work = {name: ([TOKENS[20 + step + number]], length + step) for number, (name, length) in enumerate(lengths.items())}
        expected = unsplit.step([(tokens[0], position, number) for number, (tokens, position) in enumerate(work.values())])
        for line, found in zip(expected, chain.run(work).values(), strict=True):
            np.testing.assert_array_equal(found.logits, line)
    chain.close()
