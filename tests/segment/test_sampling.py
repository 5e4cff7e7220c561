"""Sampling: greedy, within top-p, top-k and min-p, with bias and penalties, and with a seed a function of what is given alone."""

import base64
import math
from collections import Counter
from typing import Any

import pytest
import torch

from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.choices import uniform
from splitinference_segment.torch_ops.sampling import adjusted, sample, scored

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


def packed(*numbers: int) -> str:
    """Numbers below 128: a byte each."""
    return base64.b64encode(bytes(numbers)).decode()


def seen(**sampling: Any) -> set[int]:
    return {sample(LOGITS, Sampling(temperature=1.0, seed=5, **sampling), position).token for position in range(400)}


@pytest.mark.parametrize(("top_k", "tokens"), [(1, {1}), (2, {1, 3}), (3, {1, 3, 4}), (0, {0, 1, 2, 3, 4}), (99, {0, 1, 2, 3, 4})])
def test_top_k_keeps_so_many_of_the_likeliest(top_k: int, tokens: set[int]) -> None:
    assert seen(top_k=top_k) == tokens


@pytest.mark.parametrize(("min_p", "tokens"), [(0.7, {1, 3}), (0.3, {1, 3, 4}), (0.2, {0, 1, 3, 4}), (1.0, {1})])
def test_min_p_is_a_share_of_the_likeliest_tokens_probability(min_p: float, tokens: set[int]) -> None:
    assert seen(min_p=min_p) == tokens


def test_top_p_counts_within_what_top_k_leaves() -> None:
    assert seen(top_p=0.5) == {1, 3}
    assert seen(top_p=0.5, top_k=2) == {1}  # 0.4 of 0.7 is more than a half
    assert seen(top_p=0.9, min_p=0.7) == {1, 3}


def test_frequencies_within_top_k_follow_the_probabilities() -> None:
    settings = Sampling(temperature=1.0, seed=9, top_k=2)
    counts = Counter(sample(LOGITS, settings, position).token for position in range(4000))
    assert counts[1] / 4000 == pytest.approx(4 / 7, abs=0.03)


@pytest.mark.parametrize("neutral", [{"top_k": 5}, {"min_p": 0.0}, {"repetition_penalty": 1.0, "prompt": packed(1)}, {"bias": ((1, 0.0),)}])
def test_neutral_values_change_no_choice(neutral: dict[str, Any]) -> None:
    plain = [sample(LOGITS, Sampling(temperature=1.0, seed=3), position).token for position in range(300)]
    assert [sample(LOGITS, Sampling(temperature=1.0, seed=3, **neutral), position).token for position in range(300)] == plain


def test_a_bias_is_added_and_shifts_the_choice_but_not_the_logprob() -> None:
    choice = sample(LOGITS, Sampling(bias=((2, 100.0), (1, -100.0))), 0)
    assert (choice.token, choice.logprob) == (2, pytest.approx(math.log(0.05), abs=1e-5))
    assert seen(bias=((1, -100.0), (3, -100.0))) == {0, 2, 4}


def test_a_banned_token_is_not_chosen_and_one_is_always_left() -> None:
    assert sample(LOGITS, Sampling(banned=(1,)), 0).token == 3
    assert seen(banned=(0, 2)) == {1, 3, 4}
    assert sample(LOGITS, Sampling(banned=(0, 1, 2, 3, 4)), 0).token == 1


def test_the_repetition_penalty_divides_what_is_positive_and_multiplies_what_is_negative() -> None:
    logits = torch.tensor([2.0, -2.0, 4.0, 1.0])
    settings = Sampling(repetition_penalty=2.0, prompt=packed(0, 1), generated=packed(2, 7))  # 0 and 1 before, and seven times 2
    assert adjusted(logits, settings).tolist() == [1.0, -4.0, 2.0, 1.0]
    both = Sampling(repetition_penalty=2.0, prompt=packed(2), generated=packed(2, 1))
    assert adjusted(logits, both).tolist() == [2.0, -2.0, 2.0, 1.0]  # once, however often it came
    assert logits.tolist() == [2.0, -2.0, 4.0, 1.0]


def test_presence_counts_once_and_frequency_each_time_and_the_prompt_not_at_all() -> None:
    logits = torch.zeros(4)
    settings = Sampling(
        presence_penalty=0.5, frequency_penalty=0.25, prompt=packed(0), generated=packed(1, 1, 2, 4)
    )  # 1 once, 3 four times
    assert adjusted(logits, settings).tolist() == [0.0, -0.75, 0.0, -1.5]
    assert adjusted(logits, Sampling(frequency_penalty=-1.0, generated=packed(3, 2))).tolist() == [0.0, 0.0, 0.0, 2.0]


def test_penalties_turn_greedy_away_from_what_was_said() -> None:
    assert sample(LOGITS, Sampling(frequency_penalty=1.0, generated=packed(1, 1)), 0).token == 3


def test_a_seeded_choice_is_the_same_for_the_same_tokens_so_far() -> None:
    settings = Sampling(temperature=1.0, seed=42, frequency_penalty=0.5, generated=packed(1, 3))
    first = [sample(LOGITS, settings, position) for position in range(50)]
    assert first == [sample(LOGITS.clone(), settings, position) for position in range(50)]


def test_given_tokens_get_their_logprobs() -> None:
    choices = scored(torch.stack([LOGITS, LOGITS + 2]), [4, 0], 1)
    assert [choice.token for choice in choices] == [4, 0]
    assert [choice.logprob for choice in choices] == pytest.approx([math.log(0.15), math.log(0.1)], abs=1e-5)
    assert [choice.top_logprobs[0][0] for choice in choices] == [1, 1]


def bits(*tokens: int) -> str:
    data = bytearray(max(tokens) // 8 + 1)
    for token in tokens:
        data[token // 8] |= 1 << token % 8
    return base64.b64encode(data).decode()


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_only_allowed_tokens_are_chosen(temperature: float) -> None:
    seen = {sample(LOGITS, Sampling(temperature=temperature, seed=3, allowed=bits(0, 2, 4)), position).token for position in range(60)}
    assert seen <= {0, 2, 4}
    assert sample(LOGITS, Sampling(allowed=bits(0, 2, 4)), 0).token == 4


def test_a_mask_that_ends_early_allows_nothing_beyond_it_and_one_too_long_is_cut() -> None:
    logits = torch.zeros(20)
    logits[17] = 9.0
    assert sample(logits, Sampling(allowed=bits(3)), 0).token == 3
    assert sample(logits, Sampling(allowed=bits(3, 17, 90)), 0).token == 17


def test_what_is_allowed_weighs_more_than_what_is_banned() -> None:
    assert sample(LOGITS, Sampling(allowed=bits(2), banned=(2,)), 0).token == 2
    assert sample(LOGITS, Sampling(allowed=bits(0, 2), banned=(2,)), 0).token == 0


def test_log_probabilities_are_the_models_own_with_a_mask() -> None:
    assert sample(LOGITS, Sampling(allowed=bits(2)), 0).logprob == pytest.approx(math.log(0.05), abs=1e-5)


@pytest.mark.parametrize(("allowed", "said"), [("?", "not base64"), (bits(40), "no token"), ("AAAA", "no token")])
def test_a_mask_that_allows_nothing_is_refused(allowed: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(allowed=allowed).check(5)
