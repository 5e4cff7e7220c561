"""Figures over a window, and how a step's time is shared out between stages and links."""

from typing import Any

import pytest

from splitinference_gateway.pipeline.observed import Observed, percentile, stage_times
from splitinference_gateway.pipeline.step_answers import Answer
from splitinference_protocol.report import GatewayReport
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.request import Hop

PIPELINE = (Hop(segment="a", model="m"), Hop(segment="b", model="m"), Hop(segment="c", model="m"))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(*timings: Timing, seconds: float = 0.05) -> Answer:
    return Answer(token=1, logprob=None, top_logprobs=(), timings=timings, seconds=seconds)


def said(observed: Observed) -> dict[str, Any]:
    """As the operator is sent it."""
    return dict(GatewayReport(observed=observed.report()).written()["observed"])


def test_a_link_is_what_the_hop_took_beyond_the_later_stages() -> None:
    timings = (Timing("c", 0.5, 10, 0), Timing("a", 1, 12, 30), Timing("b", 0, 9, 14))  # in any order
    stages, ingress = stage_times(PIPELINE, answer(*timings))
    assert [(s.segment, s.compute_ms, s.queue_ms, s.link_ms) for s in stages] == [("a", 12, 1, 7), ("b", 9, 0, 3.5), ("c", 10, 0.5, 0)]
    assert ingress == pytest.approx(50 - 43)


def test_stages_that_said_nothing_are_left_out() -> None:
    stages, ingress = stage_times(PIPELINE, answer(Timing("b", 0, 9, 14)))
    assert [s.segment for s in stages] == ["b"]
    assert ingress is None


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.95, 95), (1.0, 100), (0.0, 1)])
def test_percentiles_are_nearest_rank(share: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == value


def test_what_is_older_than_the_window_is_forgotten() -> None:
    clock = Clock()
    observed = Observed(60, clock)
    observed.request(failed=True)
    observed.gap(9.0)
    observed.decode_step(PIPELINE, answer(Timing("a", 0, 1, 0)))
    clock.now += 30
    observed.request(failed=False)
    observed.gap(0.02)
    report = said(observed)
    assert (report["requests"], report["failed"], report["longestTokenGapMs"]) == (2, 1, 9000)
    clock.now += 31
    report = said(observed)
    assert (report["requests"], report["failed"], report["longestTokenGapMs"], report["stages"]) == (1, 0, 20, {})


def test_prompts_that_were_computed_alone_say_what_a_token_of_them_takes() -> None:
    clock = Clock()
    observed = Observed(60, clock)
    observed.decode_step(PIPELINE, answer(Timing("a", 0, 5, share=1.0)))
    for milliseconds, tokens, share in ((400, 200, 1.0), (90, 30, 1.0), (300, 100, 1.0), (9000, 100, 0.5), (9000, 100, None), (50, 2, 1.0)):
        observed.prompt_step(answer(Timing("a", 0, milliseconds, share=share)), tokens)
    stage = said(observed)["stages"]["a"]
    assert (stage["promptMsPerToken"], stage["promptTokens"], stage["prompts"]) == (3.0, 100.0, 3)
    clock.now += 61
    observed.decode_step(PIPELINE, answer(Timing("a", 0, 5, share=1.0)))
    assert "prompts" not in said(observed)["stages"]["a"]
    observed.prompt_step(answer(Timing("a", 0, 5, share=1.0)), 100)
    observed.forget({"b"})
    assert said(observed)["stages"] == {}


def test_a_stages_times_are_medians_and_say_of_how_many_steps() -> None:
    observed = Observed(60, Clock())
    for compute in (4.0, 5.0, 90.0):
        observed.decode_step(PIPELINE, answer(Timing("a", 1, compute, 0)))
    stages = said(observed)["stages"]
    assert stages == {"a": {"computeMs": 5.0, "queueMs": 1.0, "linkMs": 0.0, "steps": 3}}


def test_how_many_steps_are_computed_together() -> None:
    """Four passes: one step alone, two together twice, four together; and one step of a segment that does not say."""
    observed = Observed(60, Clock())
    for share in (1.0, *[0.5] * 4, *[0.25] * 4, None):
        observed.decode_step(PIPELINE, answer(Timing("a", 0, 5, 0, share=share)))
    stage = said(observed)["stages"]["a"]
    assert (stage["steps"], stage["batch"]) == (10, 2.25)


def test_tokens_a_second_over_the_window_and_over_what_is_kept_of_it() -> None:
    clock = Clock()
    observed = Observed(60, clock)
    assert "tokensPerSecond" not in said(observed)
    for _ in range(100):
        observed.first_token(0.1)
        for _ in range(5):
            observed.gap(0.02)
    assert said(observed)["tokensPerSecond"] == 10.0
    for _ in range(40_000):  # more than are kept: 1000 a second for 40 seconds
        clock.now += 0.001
        observed.gap(0.02)
    assert said(observed)["tokensPerSecond"] == pytest.approx(1000 + 100 / 60, rel=0.01)


def test_patience_follows_slow_steps_and_comes_back_down() -> None:
    observed = Observed()
    observed.decode_step(PIPELINE, answer(seconds=2.0))
    assert observed.slow_step_seconds == 2.0
    for _ in range(300):
        observed.decode_step(PIPELINE, answer(seconds=0.1))
    assert 0.1 <= observed.slow_step_seconds < 0.2


def test_of_steps_computed_alone_the_lower_quartile_of_the_last_seconds_is_told() -> None:
    clock = Clock()
    observed = Observed(60, clock)
    for milliseconds, share in ((90, 1.0), (90, 1.0), (5, 0.5), (5, None)):
        observed.decode_step(PIPELINE, answer(Timing("a", 0, milliseconds, 0, share=share)))
    stage = said(observed)["stages"]["a"]
    assert (stage["computeMs"], stage["steps"], stage["aloneMs"], stage["aloneSteps"]) == (5, 4, 90, 2)
    clock.now += 11
    for milliseconds in (40, 10, 30, 20):
        observed.decode_step(PIPELINE, answer(Timing("a", 0, milliseconds, 0, share=1.0)))
    stage = said(observed)["stages"]["a"]
    assert (stage["aloneMs"], stage["aloneSteps"], stage["steps"]) == (10, 4, 8)
    clock.now += 11
    assert "aloneMs" not in said(observed)["stages"]["a"]
    observed.forget(set())
    assert said(observed)["stages"] == {}
