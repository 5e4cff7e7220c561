"""Drafts give the tokens that are given without them: greedy, seeded and with penalties, in chains of 1 and 3 slices."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chains import Chain, cuts
from random_gguf import BLOCKS, VOCABULARY, make

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.sampling import Sampling

COUNT = 40
PROMPTS = {"a": [(7 * i * i + 3 * i + 1) % VOCABULARY for i in range(20)], "b": [3, 1, 4, 1, 5, 9, 2, 6], "c": [2, 7, 1]}
SAMPLINGS = {
    "greedy": Sampling(),
    "seeded": Sampling(temperature=0.8, top_p=0.9, seed=5),
    "penalties": Sampling(temperature=0.7, seed=11, frequency_penalty=0.5, repetition_penalty=1.2),
}


@pytest.fixture(scope="module", params=("llama", "gemma3"))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The second has a window of 8 tokens: what is beyond it must be there again after tokens were dropped."""
    return make(tmp_path_factory.mktemp("models"), request.param)


def counted(sampling: Sampling, generated: Sequence[int]) -> Sampling:
    """As the gateway tells it."""
    if sampling.frequency_penalty == 0:
        return sampling
    fields = {name: getattr(sampling, name) for name in sampling.__slots__}
    return Sampling(**{**fields, "generated": leb128.pack_counts({t: generated.count(t) for t in generated})})


def plainly(chain: Chain, sampling: Sampling) -> dict[str, list[int]]:
    """One token a step."""
    made: dict[str, list[int]] = {}
    for name, prompt in PROMPTS.items():
        tokens, held = list(prompt), 0
        for _ in range(COUNT):
            asked = {"sampling": counted(sampling, tokens[len(prompt) :]), "logits": False}
            choice = chain.run({name: (tokens[held:], held)}, **asked)[name].choice
            held = len(tokens)
            tokens.append(choice.token)
        made[name] = tokens[len(prompt) :]
    return made


def drafting(chain: Chain, sampling: Sampling, expected: Mapping[str, Sequence[int]]) -> tuple[dict[str, list[int]], int]:
    """Steps with drafts of 0 to 6 tokens, of which the first 0 to 6 are right; returns the tokens and the number of steps."""
    random, made, steps = np.random.default_rng(3), dict[str, list[int]](), 0
    for name, prompt in PROMPTS.items():
        tokens, held, drop = list(prompt), 0, 0
        while (done := len(tokens) - len(prompt)) < COUNT:
            right = list(expected[name][done : done + int(random.integers(0, 7))]) if held else []
            wrong = [int(token) for token in random.integers(0, VOCABULARY, int(random.integers(0, 7 - len(right))))] if held else []
            drafts = tuple([*right, *wrong][: max(0, COUNT - done - 1)])
            asked = {"sampling": counted(sampling, tokens[len(prompt) :]), "logits": False, "drafts": drafts, "drop": drop}
            output = chain.run({name: ([*tokens[held:], *drafts], held)}, **asked)[name]
            assert output.choice is not None
            held, drop = len(tokens) + len(output.more), len(drafts) - len(output.more)
            tokens += [output.choice.token, *(each.token for each in output.more)]
            steps += 1
        made[name] = tokens[len(prompt) :]
    return made, steps


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("how", SAMPLINGS)
def test_the_tokens_are_those_without_drafts(model: Path, segments: int, how: str) -> None:
    chain = Chain(model, cuts(BLOCKS, segments))
    expected = plainly(chain, SAMPLINGS[how])
    found, steps = drafting(chain, SAMPLINGS[how], expected)
    assert found == expected
    assert steps < 0.7 * COUNT * len(PROMPTS)
    chain.close()


def test_logits_after_dropped_tokens_are_as_if_they_had_never_been(model: Path) -> None:
    chain, plain = (Chain(model, cuts(BLOCKS, 3), name=name) for name in "ab")
    tokens = PROMPTS["a"]
    fields: dict[str, Any] = {"sampling": Sampling(), "logits": False}
    chain.run({"s": (tokens[:10], 0)}, **fields)
    output = chain.run({"s": ([tokens[10], 1, 2, 3, 4], 10)}, drafts=(1, 2, 3, 4), **fields)["s"]
    dropped = 4 - len(output.more)
    plain.run({"s": (tokens[:10], 0)}, **fields)
    plain.run({"s": ([tokens[10], *(each.token for each in [output.choice, *output.more][: len(output.more)])], 10)}, **fields)
    position = 11 + len(output.more)
    after = [output.choice, *output.more][-1].token
    ours = chain.run({"s": ([after], position)}, drop=dropped)["s"].logits
    assert np.abs(ours - plain.run({"s": ([after], position)})["s"].logits).max() < 1e-5
    chain.close()
    plain.close()
