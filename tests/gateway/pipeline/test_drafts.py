"""Drafts by prompt lookup: what is found, how many pay, and texts that are the same with them as without."""

import asyncio
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion

from splitinference_gateway.pipeline.drafts import Drafter, Lookup, Speculation, best_length
from splitinference_gateway.pipeline.recovery import handover
from splitinference_gateway.routing.lanes import Costs
from tests.gateway import serving as plain
from tests.gateway.model_folder import END
from tests.gateway.serving import MODEL, Serving
from tests.gateway.toy_chain import ToySegment, reference, toy_segments

PHRASE = b"the same words come again, "
EXPECTED = PHRASE * 6


def test_what_followed_the_longest_match_is_found() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3, 7, 8, 1, 2, 3]
    assert Lookup().find(tokens, 2) == ([4, 9], 3), "not [7, 8], whose match is shorter though later"


def test_of_equal_matches_the_last_counts() -> None:
    assert Lookup().find([5, 1, 2, 6, 5, 1, 2, 7, 4, 1, 2], 1) == ([7], 2)


def test_a_match_that_reaches_the_end_repeats_itself() -> None:
    assert Lookup().find([9, 1, 2, 1, 2], 5) == ([1, 2, 1, 2, 1], 2)


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4, 5], [1, 1]])
def test_where_nothing_came_before_nothing_is_found(tokens: list[int]) -> None:
    assert Lookup().find(tokens, 4) == ([], 0)


def test_tokens_that_come_later_are_found_too() -> None:
    lookup, tokens = Lookup(), [1, 2, 3]
    assert lookup.find(tokens, 3) == ([], 0)
    for token in (4, 1, 2):
        tokens.append(token)
        found = lookup.find(tokens, 3)
    assert found == ([3, 4, 1], 2)


def test_a_lookup_in_one_go_finds_what_one_step_by_step_finds() -> None:
    tokens = [(i * i + i // 7) % 11 for i in range(600)]
    whole = Lookup()
    for end in range(2, len(tokens)):
        assert whole.find(tokens[:end], 4) == Lookup().find(tokens[:end], 4), end


@pytest.mark.parametrize(
    ("right", "cost", "most", "expected"),
    [(1.0, 0.05, 7, 7), (0.9, 0.0, 7, 7), (0.0, 0.01, 7, 0), (0.1, 0.2, 7, 0), (0.5, 0.4, 7, 1), (0.9, 0.05, 0, 0)],
)
def test_so_many_drafts_pay(right: float, cost: float, most: int, expected: int) -> None:
    assert best_length(right, cost, most) == expected


def measured() -> Costs:
    costs = Costs()
    costs.ran(0.1, 0)
    return costs


def told(drafter: Drafter, tokens: list[int], comes: list[int], costs: Costs) -> list[int]:
    """Play a text that goes on with `comes`; the number of drafts of each step."""
    made, left = [], list(comes)
    while left:
        drafts = drafter.drafts(tokens, len(left) - 1, costs)
        accepted = next((i for i, (a, b) in enumerate(zip(drafts, left, strict=False)) if a != b), len(drafts))
        drafter.sampled(len(drafts), accepted, left[0])
        tokens += left[: accepted + 1]
        del left[: accepted + 1]
        made.append(len(drafts))
    return made


def test_drafts_that_are_right_become_more() -> None:
    drafter = Speculation(7).drafter()
    phrase = [*range(40)]
    made = told(drafter, [*phrase, 0, 1], phrase[2:] + phrase, measured())
    assert 0 < made[0] < 7
    assert made[-2] == 7
    assert len(made) < 20, "of 78 tokens"


def test_drafts_that_are_wrong_end_and_begin_again_when_they_would_be_right() -> None:
    drafter, costs = Speculation(7).drafter(), measured()
    tokens: list[int] = [1, 2]
    wrong = told(drafter, tokens, [token for i in range(60) for token in (1, 2, 100 + i)], costs)
    assert sum(wrong[-60:]) == 0, "what is found is always followed by something else"
    again = told(drafter, tokens, [1, 2, 3, 4, 5, 6, 7, 8] * 12, costs)
    assert max(again) == 7


def test_a_new_sequence_believes_those_before() -> None:
    shared, costs = Speculation(7), measured()
    for _ in range(8):
        told(shared.drafter(), [1, 2], [token for i in range(30) for token in (1, 2, 100 + i)], costs)
    first = told(shared.drafter(), [1, 2, 3, 1, 2], [50, 51], costs)
    assert first == [0, 0]


def test_drafts_that_cost_too_much_are_left_and_tried_again_later() -> None:
    costs = measured()
    for _ in range(30):
        costs.ran(1.0, 3)
    assert best_length(0.5, costs.relative, 7) == 0
    for _ in range(300):
        costs.ran(0.1, 0)
    assert best_length(0.5, costs.relative, 7) > 0


def test_after_two_failures_a_sequence_goes_on_without() -> None:
    drafter = Speculation(7).drafter()
    tokens = [1, 2, 3, 1, 2]
    assert drafter.drafts(tokens, 3, measured())
    drafter.failed()
    drafter.failed()
    assert not drafter.drafts(tokens, 3, measured())


def test_where_none_are_wanted_none_are_made() -> None:
    assert Speculation(0).drafter().drafts([1, 2, 3, 1, 2], 3, measured()) == []


pytestmark = pytest.mark.anyio


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps whose measured times say that a draft costs little, however busy the machine is."""
    monkeypatch.setattr(Costs, "ran", lambda self, seconds, drafted: setattr(self, "plain", 1.0))


async def told_by(world: Serving, prompt: str = "repeat", tokens: int = len(EXPECTED), **more: object) -> list[str]:
    answer = await answered(world, prompt, tokens, **more)
    return [choice.text for choice in answer.choices]


async def answered(world: Serving, prompt: str = "repeat", tokens: int = len(EXPECTED), **more: Any) -> Completion:
    async with world.client as client:
        return await client.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, **{"temperature": 0, **more})


def serving(*given: Any, **more: Any) -> AbstractAsyncContextManager[Serving]:
    """With drafts."""
    return plain.serving(*given, **{"speculation": "auto", **more})


async def replays(world: Serving) -> int:
    return (await world.get("/internal/routes"))["observed"]["replays"]


async def repeating(*names: str) -> list[ToySegment]:
    segments = await toy_segments(*names)
    segments[-1].script = EXPECTED
    return segments


@pytest.mark.usefixtures("steady")
async def test_one_trip_yields_several_tokens_and_the_text_is_the_same(tmp_path: Path, model_path: Path) -> None:
    segments = await repeating("a", "b", "c")
    async with serving(tmp_path, model_path, segments) as world:
        assert await told_by(world) == [EXPECTED.decode()]
        assert segments[0].counts["step"] < len(EXPECTED) / 1.8
        drafted = await world.metric('splitinference_gateway_draft_tokens_total{kind="drafted"}')
        accepted = await world.metric('splitinference_gateway_draft_tokens_total{kind="accepted"}')
        assert drafted >= accepted > 0.4 * len(EXPECTED)
        assert sum(segments[0].drafted) == drafted
        assert await replays(world) == 0


@pytest.mark.usefixtures("steady")
async def test_text_after_tokens_that_were_rejected_is_the_same(tmp_path: Path, model_path: Path) -> None:
    """The toy model's text has few letters: pairs come again all the time, and are followed by something else."""
    segments = await toy_segments("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        prompt = "a prompt of some length with a rest"
        for sampling in ({"temperature": 0}, {"temperature": 1, "seed": 5}):
            told = reference(prompt.encode(), 150, {"seed": None, **sampling})
            assert await told_by(world, prompt, 150, **sampling) == [bytes(told).decode(errors="replace")]
        drafted = await world.metric('splitinference_gateway_draft_tokens_total{kind="drafted"}')
        assert drafted > await world.metric('splitinference_gateway_draft_tokens_total{kind="accepted"}')
        assert await replays(world) == 0


@pytest.mark.usefixtures("steady")
async def test_choices_stops_and_probabilities_are_the_same(tmp_path: Path, model_path: Path) -> None:
    segments = await repeating("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        choices = await told_by(world, n=3, temperature=1, seed=3)
        assert choices == [EXPECTED.decode()] * 3
        stopped = await told_by(world, stop=["again, the same words c"])
        assert stopped == ["the same words come "]
        answer = await answered(world, tokens=60, logprobs=2)
        told = answer.choices[0].logprobs
        assert told is not None
        assert told.tokens is not None
        assert "".join(told.tokens) == EXPECTED.decode()[:60]
        assert told.token_logprobs == [-0.5] * 60
        assert max(segments[0].drafted) > 1


@pytest.mark.usefixtures("steady")
async def test_an_end_among_drafts_ends_the_answer(tmp_path: Path, model_path: Path) -> None:
    """As in the second turn of a conversation: what is looked up goes on behind the end of the first answer."""
    segments = await toy_segments("a", "b")
    segments[1].script = PHRASE
    async with serving(tmp_path, model_path, segments) as world, world.client as client:
        prompt = [*PHRASE, END, *PHRASE, END]
        answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=200, temperature=0)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (PHRASE.decode(), "stop")
        assert sum(segments[0].drafted) > len(PHRASE) / 2


@pytest.mark.usefixtures("steady")
async def test_an_answer_never_has_more_tokens_than_were_asked_for(tmp_path: Path, model_path: Path) -> None:
    segments = await repeating("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        for tokens in (57, 58, 59, 60, 61):
            answer = await answered(world, tokens=tokens)
            assert answer.usage is not None
            assert (answer.choices[0].text, answer.usage.completion_tokens) == (EXPECTED.decode()[:tokens], tokens)


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.usefixtures("steady")
async def test_a_stage_that_lost_its_kv_amid_drafts_is_mended(tmp_path: Path, model_path: Path, stage: int) -> None:
    segments = await repeating("a", "b")
    async with serving(tmp_path, model_path, segments) as world:
        reading = asyncio.create_task(told_by(world))
        while sum(segments[1].drafted) < 12:
            await asyncio.sleep(0)
        segments[stage].sequences.clear()
        assert await reading == [EXPECTED.decode()]
        assert await world.metric('splitinference_gateway_replays_total{reason="kv_missing"}') == 1


@pytest.mark.usefixtures("steady")
async def test_a_segment_that_knows_no_drafts_is_asked_without(tmp_path: Path, model_path: Path) -> None:
    segments = await repeating("a", "b")
    segments[1].forgets_drafts = True
    async with serving(tmp_path, model_path, segments) as world:
        assert await told_by(world) == [EXPECTED.decode()]
        assert sum(map(bool, segments[0].drafted)) == 2


@pytest.mark.usefixtures("steady")
async def test_a_sequence_is_handed_over_amid_drafts(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stage stays, and holds drafts that were wrong; the other is new, and never did."""
    monkeypatch.setattr(handover, "copy_is_quicker", lambda *_: True)
    segments = await toy_segments("a", "b", "c")
    for segment, layers in zip(segments, ((0, 5), (5, 9), (5, 9)), strict=True):
        segment.layers = layers
        segment.seconds = 0.01
    a, b, c = segments
    told = bytes(reference(b"a prompt of some length", 500)).decode(errors="replace")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b], revision="r1")
        await world.routed("r1")
        reading = asyncio.create_task(told_by(world, "a prompt of some length", 500))
        while sum(a.drafted) < 10:
            await asyncio.sleep(0)
        world.route([a, c], revision="r2", drain_seconds=0.3)
        assert await reading == [told]
        assert await world.metric("splitinference_gateway_handovers_total") == 1
        assert max(c.chunks) == 1, "it never saw the prompt"
        assert sum(c.drafted), "and drafts go on"


@pytest.mark.usefixtures("steady")
async def test_without_speculation_nothing_is_drafted(tmp_path: Path, model_path: Path) -> None:
    segments = await repeating("a", "b")
    async with serving(tmp_path, model_path, segments, speculation="off") as world:
        assert await told_by(world) == [EXPECTED.decode()]
        assert segments[0].counts["step"] == len(EXPECTED)


@pytest.mark.parametrize("more", [{"json_schema": {"type": "object"}}, {"guided_regex": "(ab ){20}"}])
@pytest.mark.usefixtures("steady")
async def test_what_follows_a_grammar_is_not_drafted(tmp_path: Path, model_path: Path, more: dict[str, object]) -> None:
    segments = await toy_segments("a")
    async with serving(tmp_path, model_path, segments) as world:
        await told_by(world, tokens=60, extra_body=more)
        assert sum(segments[0].drafted) == 0
