"""Log-probabilities and seeded samples are the unsplit model's: at every split point, and whichever way the tokens were run.

Tolerances: float32, 1e-4 nats (the order of sums is all that differs); bfloat16 as its test says. Samples with a seed are equal.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from in_process import Chain, Network, Parts
from random_models import CONFIGS
from transformers import AutoModelForCausalLM

from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.choices import Choice
from splitinference_segment.torch_ops.sampling import sample

COUNT = 16
TOLERANCE = 1e-4  # nats, float32
SEEDED = Sampling(temperature=1.0, top_p=0.95, seed=1234, logprobs=5)

Choose = Callable[[torch.Tensor, int], Choice]  # logits and how many tokens came before → the next token


@pytest.fixture
def network() -> Iterator[Network]:
    made = Network()
    yield made
    made.close()


def seeded(logits: torch.Tensor, position: int) -> Choice:
    return sample(logits, SEEDED, position)


@cache
def unsplit(folder: Path, prompt: tuple[int, ...]) -> tuple[Choice, ...]:
    """What transformers' own forward pass gives, over all tokens each time, and our sampler."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, made = list(prompt), list[Choice]()
    with torch.inference_mode():
        for _ in range(COUNT):
            made.append(seeded(model(torch.tensor([tokens])).logits[0, -1].float(), len(tokens)))
            tokens.append(made[-1].token)
    return tuple(made)


def log_probabilities(folder: Path, tokens: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """After the last of `tokens`, by transformers' own forward pass; float32 [vocabulary]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        return torch.log_softmax(model(torch.tensor([list(tokens)])).logits[0, -1].float(), -1)


def sampled(chain: Chain, tokens: list[int], held: int, count: int) -> list[Choice]:
    """Run what is not held, then sample `count` tokens, appended to `tokens`; all of `tokens` but the last are held then."""
    made = []
    for _ in range(count):
        made.append(seeded(chain.step(tokens[held:], held), len(tokens)))
        held = len(tokens)
        tokens.append(made[-1].token)
    return made


def alone(parts: Parts, network: Network, cuts: Sequence[int], prompt: Sequence[int]) -> list[Choice]:
    return sampled(parts.chain(network, "a", cuts), list(prompt), 0, COUNT)


def in_chunks(parts: Parts, network: Network, cuts: Sequence[int], prompt: Sequence[int]) -> list[Choice]:
    chain, held = parts.chain(network, "a", cuts), 0
    for chunk in (prompt[:7], prompt[7:12]):
        chain.step(chunk, held)
        held += len(chunk)
    return sampled(chain, list(prompt), held, COUNT)


def in_a_batch(parts: Parts, network: Network, cuts: Sequence[int], prompt: Sequence[int]) -> list[Choice]:
    """Beside two others of other lengths, in one row at every step."""
    chain = parts.chain(network, "a", cuts)
    tokens = {"other": [3, 1, 4], "s": list(prompt), "another": list(prompt[::-1])}
    logits, made = chain.steps({name: (own, 0) for name, own in tokens.items()}), list[Choice]()
    while True:
        for name, own in tokens.items():
            choice = seeded(logits[name], len(own))
            own.append(choice.token)
            if name == "s":
                made.append(choice)
        if len(made) == COUNT:
            return made
        logits = chain.steps({name: (own[-1:], len(own) - 1) for name, own in tokens.items()})


def replayed(parts: Parts, network: Network, cuts: Sequence[int], prompt: Sequence[int]) -> list[Choice]:
    """Half of the tokens, then everything again from position 0 elsewhere."""
    tokens = list(prompt)
    made = sampled(parts.chain(network, "a", cuts), tokens, 0, COUNT // 2)
    return made + sampled(parts.chain(network, "b", cuts), tokens, 0, COUNT - COUNT // 2)


def handed_over(parts: Parts, network: Network, cuts: Sequence[int], prompt: Sequence[int]) -> list[Choice]:
    """Begun on a chain that is cut in the middle, continued on this one with its KV."""
    last, tokens = cuts[-1], list(prompt)
    old, new = parts.chain(network, "a", [0, last // 2, last]), parts.chain(network, "b", cuts)
    made = sampled(old, tokens, 0, COUNT // 2)
    new.take_over(old, 0, len(tokens) - 1)
    return made + sampled(new, tokens, len(tokens) - 1, COUNT - COUNT // 2)


WAYS = {way.__name__: way for way in (alone, in_chunks, in_a_batch, replayed, handed_over)}


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_seeded_samples_and_their_log_probabilities_are_the_unsplit_models(
    name: str, way: str, models: dict[str, Path], prompt: list[int], network: Network
) -> None:
    last, parts = CONFIGS[name].num_hidden_layers + 2, Parts(models[name])
    expected = unsplit(models[name], tuple(prompt))
    assert len({choice.token for choice in expected}) > 3, "the samples repeat themselves too much to tell anything"
    for cut in range(1, last):
        got = WAYS[way](parts, network, [0, cut, last], prompt)
        assert [choice.token for choice in got] == [choice.token for choice in expected], f"cut at {cut}"
        for mine, theirs in zip(got, expected, strict=True):
            assert math.isclose(mine.logprob, theirs.logprob, abs_tol=TOLERANCE), f"cut at {cut}"
            assert dict(mine.top_logprobs) == pytest.approx(dict(theirs.top_logprobs), abs=TOLERANCE), f"cut at {cut}"


def test_bfloat16_log_probabilities_are_as_close_to_float32_as_the_unsplit_bfloat16_models(
    models: dict[str, Path], prompt: list[int]
) -> None:
    """Teacher-forced and in chunks, over tokens of at least 1 %. Where it is cut changes nothing at all; chunks round differently."""
    exact, unsplit_bf16 = (log_probabilities(models["llama"], prompt, dtype) for dtype in (torch.float32, torch.bfloat16))
    likely = exact > math.log(0.01)
    own_error = float((unsplit_bf16 - exact)[likely].abs().max())
    network, parts, got = Network(), Parts(models["llama"], torch.bfloat16), list[torch.Tensor]()
    for cut in range(1, 7):
        chain = parts.chain(network, f"cut{cut}", [0, cut, 7])
        chain.step(prompt[:9], 0)
        got.append(torch.log_softmax(chain.step(prompt[9:], 9), -1))
    network.close()
    assert all(torch.equal(each, got[0]) for each in got)
    assert float((got[0] - exact)[likely].abs().max()) < 1.5 * own_error
