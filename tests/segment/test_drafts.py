"""Drafts give the tokens that are given without them, in float32: greedy, seeded and with penalties, in one batch with others."""

import itertools
from pathlib import Path

import pytest
import torch

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.request import Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.cache.kv import KvLimits, KvTable
from splitinference_segment.engine import Output, Work
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.torch_engine import TorchEngine

COUNT = 30
CUTS = (0, 2, 5, 7)
SAMPLINGS = {
    "greedy": {},
    "seeded": {"temperature": 0.8, "top_p": 0.9, "seed": 5},
    "penalties": {"temperature": 0.7, "seed": 11, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
}


class Stages:
    """Engines and KV tables of three segments, stepped as a segment does it."""

    def __init__(self, folder: Path) -> None:
        self._engines = [TorchEngine(Layers(folder, *pair, torch.float32)) for pair in itertools.pairwise(CUTS)]
        self._tables = [KvTable(engine.kv_shape, KvLimits(8, 1 << 30, 256, 60.0)) for engine in self._engines]

    def run(self, work: dict[str, tuple[list[int], Request]]) -> dict[str, Output]:
        """Token ids and request by sequence, in one batch."""
        values = {name: torch.tensor(tokens) for name, (tokens, _) in work.items()}
        outputs: list[Output] = []
        for engine, table in zip(self._engines, self._tables, strict=True):
            batch = [
                Work(request, values[name], table.begin(name, request.position, len(tokens), 0.0, None, request.drop))
                for name, (tokens, request) in work.items()
            ]
            outputs = engine.run(batch)
            for each in batch:
                table.end(each.entry, each.tokens, 0.0)
            values = {name: output.hidden for name, output in zip(work, outputs, strict=True) if output.hidden is not None}
        return dict(zip(work, outputs, strict=True))


class Sequence:
    """One sequence as the gateway keeps it."""

    def __init__(self, name: str, prompt: list[int], sampling: Sampling) -> None:
        self.name, self.tokens, self.prompt = name, list(prompt), len(prompt)
        self._sampling, self._held, self._drop = sampling, 0, 0

    def step(self, drafts: list[int]) -> tuple[list[int], Request]:
        """What to run next."""
        made = self.made
        counted = leb128.pack_counts({token: made.count(token) for token in made}) if self._sampling.frequency_penalty else ""
        fields = {name: getattr(self._sampling, name) for name in self._sampling.__slots__} | {"generated": counted}
        tokens = self.tokens[self._held :] + drafts
        request = Request(
            "step", self.name, self._held, TensorMeta("int64", (len(tokens),)), sample=True, sampling=Sampling(**fields),
            drafts=tuple(drafts), drop=self._drop,
        )  # fmt: skip
        return tokens, request

    def took(self, output: Output, drafts: list[int]) -> None:
        """What came of it."""
        assert output.choice is not None
        self._held, self._drop = len(self.tokens) + len(output.more), len(drafts) - len(output.more)
        self.tokens += [output.choice.token, *(each.token for each in output.more)]

    @property
    def made(self) -> list[int]:
        return self.tokens[self.prompt :]


def plainly(stages: Stages, name: str, prompt: list[int], sampling: Sampling) -> list[int]:
    sequence = Sequence(name, prompt, sampling)
    while len(sequence.made) < COUNT:
        sequence.took(stages.run({name: sequence.step([])})[name], [])
    return sequence.made


@pytest.mark.parametrize("how", SAMPLINGS)
def test_three_segments_give_the_tokens_that_they_give_without_drafts(models: dict[str, Path], prompt: list[int], how: str) -> None:
    """Two sequences side by side: one with drafts of which some are right, one without."""
    stages, sampling = Stages(models["llama"]), Sampling(**SAMPLINGS[how])
    expected = plainly(stages, "a", prompt, sampling)
    beside = plainly(stages, "b", prompt[::-1], sampling)
    one, other, turn = Sequence("c", prompt, sampling), Sequence("d", prompt[::-1], sampling), 0
    while (done := len(one.made)) < COUNT:
        right, wrong = turn % 5, turn % 3
        guesses = [*expected[done : done + right], *[(token + 1) % 200 for token in expected[done + right : done + right + wrong]]]
        drafts = guesses[: COUNT - done - 1] if done else []
        found = stages.run({"c": one.step(drafts), "d": other.step([])})
        one.took(found["c"], drafts)
        other.took(found["d"], [])
        turn += 1
    assert one.made == expected
    assert other.made == beside[: len(other.made)]
    assert turn < 0.7 * COUNT
