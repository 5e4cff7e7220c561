"""Sampling: greedy, within top-p, and with a seed a function of seed, position and logits alone."""

import math
from collections import Counter

import pytest
import torch

from splitinference_segment.protocol import Sampling
from splitinference_segment.sampling import sample, uniform

LOGITS = torch.log(torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]))


def test_temperature_zero_takes_the_likeliest_token() -> None:
    assert sample(LOGITS, Sampling(), 0).token == 1


def test_the_logprob_is_the_models_own_whatever_the_temperature() -> None:
    assert sample(LOGITS + 3.0, Sampling(), 0).logprob == pytest.approx(math.log(0.4), abs=1e-5)
    hot = sample(LOGITS, Sampling(temperature=5.0, seed=1), 0)
    assert hot.logprob == pytest.approx(float(LOGITS[hot.token]), abs=1e-5)


def test_top_logprobs_are_the_likeliest_in_order() -> None:
    choice = sample(LOGITS, Sampling(logprobs=3), 0)
    assert [token for token, _ in choice.top_logprobs] == [1, 3, 4]
    assert [p for _, p in choice.top_logprobs] == pytest.approx([math.log(0.4), math.log(0.3), math.log(0.15)], abs=1e-5)
    assert sample(LOGITS, Sampling(), 0).top_logprobs == []


def test_a_seed_makes_the_choice_a_function_of_position_and_logits() -> None:
    settings = Sampling(temperature=1.0, seed=42)
    first = [sample(LOGITS, settings, position).token for position in range(50)]
    assert first == [sample(LOGITS, settings, position).token for position in range(50)]
    assert first != [sample(LOGITS, Sampling(temperature=1.0, seed=43), position).token for position in range(50)]


def test_frequencies_follow_the_probabilities() -> None:
    counts = Counter(sample(LOGITS, Sampling(temperature=1.0, seed=9), position).token for position in range(4000))
    for token, probability in enumerate([0.1, 0.4, 0.05, 0.3, 0.15]):
        assert counts[token] / 4000 == pytest.approx(probability, abs=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    settings = Sampling(temperature=1.0, top_p=0.65, seed=5)
    assert {sample(LOGITS, settings, position).token for position in range(400)} == {1, 3}
    assert {sample(LOGITS, Sampling(temperature=1.0, top_p=0.0, seed=5), position).token for position in range(20)} == {1}


def test_a_low_temperature_sharpens() -> None:
    counts = Counter(sample(LOGITS, Sampling(temperature=0.1, seed=3), position).token for position in range(400))
    assert counts[1] > 360


def test_without_a_seed_choices_differ() -> None:
    assert len({sample(LOGITS, Sampling(temperature=1.0), 0).token for _ in range(200)}) > 1


def test_uniform_numbers_lie_in_the_half_open_unit_interval() -> None:
    numbers = [uniform(1, position) for position in range(1000)]
    assert 0 <= min(numbers) < 0.01
    assert 0.99 < max(numbers) < 1
