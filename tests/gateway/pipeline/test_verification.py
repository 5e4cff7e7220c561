"""Sampled sequences are checked beside the chain, and a segment that answers wrongly gets nothing more."""

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.pipeline.step_answers import StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.pipeline.verification import bound
from splitinference_protocol.route import RouteDocument, RouteError
from splitinference_protocol.wire.request import Hop
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import ToySegment, toy_segments

PROMPT = "a prompt of some tokens, so that there is something to check"


def checks(before: ToySegment | None, checked: Sequence[ToySegment], after: ToySegment, verifier: ToySegment) -> dict[str, Any]:
    return {
        "segments": [segment.name for segment in checked],
        **({"before": before.hop} if before else {}),
        "after": after.hop,
        "verifier": verifier.hop,
    }


def verification(*found: dict[str, Any], percent: float = 100, tolerance: float = 0.02) -> dict[str, Any]:
    return {"verification": {"samplePercent": percent, "tolerance": tolerance, "checks": list(found)}}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.02)


async def report(world: Serving) -> dict[str, Any]:
    found: dict[str, Any] = (await world.get("/internal/routes"))["verification"]
    return found


@pytest.mark.anyio
async def test_every_token_of_a_sampled_sequence_is_checked_once_and_in_order(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        await world.complete(PROMPT, 100)
        await until(lambda: not a.records and not c.records)
        ran = sum(b.chunks)
        assert sum(count for _, count in v.verified) == ran
        assert [position for position, _ in v.verified] == [sum(n for _, n in v.verified[:i]) for i in range(len(v.verified))]
        assert len(v.verified) > 1, "not only at the end"
        assert await report(world) == {"sampled": 1, "checkedTokens": ran, "skipped": 0, "failed": {}}
        assert b.counts.keys() == {"step", "release"}, "the checked segment is asked for nothing else"
        await world.idle()
        assert not v.sequences, "the verifier has forgotten it"


@pytest.mark.anyio
async def test_a_run_that_begins_the_model_is_checked_with_the_tokens_themselves(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **verification(checks(None, [a, b], c, v)))
        await world.routed("r1")
        await world.complete(PROMPT, 5)
        await until(lambda: sum(count for _, count in v.verified) == sum(a.chunks))
        assert a.counts.keys() == b.counts.keys() == {"step", "release"}


@pytest.mark.anyio
async def test_nothing_is_sampled_without_checks_or_by_chance(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    async with serving(tmp_path, model_path, segments) as world:
        verifier = world.gateway.chain.verifier
        for number, fields in enumerate(
            [{}, verification(), verification(checks(c, [b], a, v)), verification(checks(a, [b], c, v), percent=1)]
        ):
            verifier.chance = lambda: 0.011
            world.route([a, b, c], revision=f"n{number}", **fields)
            await world.routed(f"n{number}")
            await world.complete(PROMPT, 3)
        assert "record" not in a.counts
        verifier.chance = lambda: 0.009
        await world.complete(PROMPT, 3)
        assert a.counts["record"] == 1


@pytest.mark.anyio
async def test_a_wrong_segment_is_left_and_the_sequence_goes_on_elsewhere(tmp_path: Path, model_path: Path) -> None:
    """The same text as of a whole model: the sequence's tokens run again along the new route, from the first on."""
    a, b, c, v, d = segments = await toy_segments("a", "b", "c", "v", "d")
    v.wrong = 0.05
    for segment in (a, b, c, d):
        segment.seconds = 0.01
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, d, c], revision="plain")
        await world.routed("plain")
        expected = await world.complete(PROMPT, 150)
        world.route([a, b, c], revision="r1", drain_seconds=0, **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        asking = asyncio.create_task(world.complete(PROMPT, 150))
        await until(lambda: bool(world.gateway.chain.verifier.failed))
        stopped = b.counts["step"]
        failed = (await report(world))["failed"]
        assert failed.keys() == {"b"}
        assert failed["b"]["error"] == 0.05
        assert failed["b"]["limit"] == pytest.approx(bound(0.02, failed["b"]["tokens"]), rel=1e-3)
        assert failed["b"]["error"] > failed["b"]["limit"]
        assert not asking.done()
        await asyncio.sleep(0.3)
        assert b.counts["step"] <= stopped + 1, "at most the step that was under way"
        world.route([a, d, c], revision="r2")
        assert await asking == expected
        assert await world.metric("splitinference_gateway_verification_failures_total") >= 1
        assert (await report(world))["failed"] == {}, "no route knows the segment any more"


@pytest.mark.anyio
async def test_new_requests_wait_for_another_route_and_are_told_so(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    v.wrong = 1.0
    async with serving(tmp_path, model_path, segments, routed=False, replay_seconds=0.5) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        await world.complete(PROMPT, 3)
        await until(lambda: bool(world.gateway.chain.verifier.failed))
        before = b.counts["step"]
        status, body, _ = await world.post("/v1/completions", {"model": "toy", "prompt": "x"})
        assert status == 503
        assert body["error"]["code"] == "no_route"
        assert b.counts["step"] == before


@pytest.mark.anyio
async def test_another_pipeline_takes_over_where_there_is_one(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v, d, e, f = segments = await toy_segments("a", "b", "c", "v", "d", "e", "f")
    v.wrong = 1.0
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], [d, e, f], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        await world.complete(PROMPT, 3)
        await until(lambda: bool(world.gateway.chain.verifier.failed))
        before = b.counts["step"]
        await asyncio.gather(*(world.complete("x", 3) for _ in range(4)))
        assert b.counts["step"] == before
        assert e.counts["step"] > 0


@pytest.mark.anyio
async def test_a_segment_that_fails_a_step_before_the_check_is_checked_all_the_same(tmp_path: Path, model_path: Path) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    v.wrong = 1.0
    async with serving(tmp_path, model_path, segments, routed=False, replay_seconds=0.5, prefill_chunk_tokens=32) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        answered = b._step

        async def fails_its_second_step(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
            if meta["position"]:
                raise b._error("kv_missing")
            return await answered(meta, data)

        b._step = fails_its_second_step  # type: ignore[method-assign]
        await world.post("/v1/completions", {"model": "toy", "prompt": PROMPT, "max_tokens": 3})
        assert world.gateway.chain.verifier.failed.keys() == {"b"}


@pytest.mark.anyio
async def test_no_sequence_begins_behind_its_first_token_while_segments_are_checked(tmp_path: Path, model_path: Path) -> None:
    """Otherwise a segment would know of such a sequence that nobody checks it."""
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    prompt = "x" * 300
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v), percent=1))
        await world.routed("r1")
        world.gateway.chain.verifier.chance = lambda: 0.5
        await world.complete(prompt, 2)
        first = sum(b.chunks)
        await world.complete(prompt, 2)
        assert sum(b.chunks) == 2 * first
        world.route([a, b, c], revision="r2")
        await world.routed("r2")
        await world.complete(prompt, 2)
        await world.idle()
        before = sum(b.chunks)
        await world.complete(prompt, 2)
        assert sum(b.chunks) - before < first, "without checks what is held is used again"


@pytest.mark.anyio
async def test_a_sequence_that_waited_for_a_route_with_checks_begins_at_its_first_token(tmp_path: Path, model_path: Path) -> None:
    """It came when nothing was checked, and its beginning is held."""
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    prompt = "x" * 300
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1")
        await world.routed("r1")
        expected = await world.complete(prompt, 2)
        await world.idle()
        first = sum(b.chunks)
        world.route(revision="stopped", drain_seconds=0)
        await until(lambda: world.gateway.routes.current is None)
        asking = asyncio.create_task(world.complete(prompt, 2))
        await until(lambda: world.gateway.admission.running == 1)
        world.route([a, b, c], revision="r2", **verification(checks(a, [b], c, v)))
        assert await asking == expected
        assert sum(b.chunks) == 2 * first
        await until(lambda: sum(count for _, count in v.verified) == first)


@pytest.mark.anyio
async def test_a_verifier_that_takes_long_keeps_its_connection(tmp_path: Path, model_path: Path) -> None:
    """It is in no route, and connections to what no route knows are closed every five seconds."""
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")
    answered = v._verify

    async def slowly(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        await asyncio.sleep(7)
        return await answered(meta, data)

    v._verify = slowly  # type: ignore[method-assign]
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        await world.complete("x" * 20, 2)
        verifier = world.gateway.chain.verifier
        await until(lambda: verifier._running == 0)
        assert (verifier.skipped, verifier.checked_tokens) == (0, sum(b.chunks))


@pytest.mark.anyio
@pytest.mark.parametrize("who", ["witness", "verifier"])
async def test_what_cannot_be_checked_is_served_and_counted(tmp_path: Path, model_path: Path, who: str) -> None:
    a, b, c, v = segments = await toy_segments("a", "b", "c", "v")

    async def broken(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        raise v._error("overloaded")

    if who == "witness":
        c._record = broken  # type: ignore[method-assign]
    else:
        v._verify = broken  # type: ignore[method-assign]
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **verification(checks(a, [b], c, v)))
        await world.routed("r1")
        assert await world.complete(PROMPT, 3)
        await until(lambda: world.gateway.chain.verifier.skipped == 1)
        found = await report(world)
        assert (found["checkedTokens"], found["failed"]) == (0, {})
        await until(lambda: world.gateway.chain.verifier._running == 0)


def test_the_bound_is_the_segments_own() -> None:
    for tokens in (1, 2, 64, 1000):
        assert bound(0.016, tokens) == pytest.approx(0.016 * (1 + 2 / tokens**0.5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"samplePercent": 0},
        {"samplePercent": 101},
        {"samplePercent": float("nan")},
        {"tolerance": 0},
        {"tolerance": -1},
        {"checks": [{"segments": [], "after": {"segment": "c", "model": "m"}, "verifier": {"segment": "v", "model": "m"}}]},
        {"checks": [{"segments": ["b"], "after": {"segment": "10.0.0.1", "model": "m"}, "verifier": {"segment": "v", "model": "m"}}]},
        {"checks": [{"segments": ["b"]}]},
    ],
)
def test_a_document_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    fields = {"samplePercent": 1, "tolerance": 0.02, "checks": [], **wrong}
    document = {"v": 1, "revision": "r", "pipelines": [[{"segment": "a", "model": "m"}]], "verification": fields}
    with pytest.raises(RouteError):
        RouteDocument.parse(json.dumps(document))


@pytest.mark.anyio
@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"tokens": 2, "mean": 0.1, "worst": 0.1, "worst_at": 0},
        {"tokens": 1, "mean": -1, "worst": 0.1, "worst_at": 0},
        {"tokens": 1, "mean": "nan", "worst": 0.1, "worst_at": 0},
        {"tokens": 1, "mean": 1e999, "worst": 0.1, "worst_at": 0},
    ],
)
async def test_an_answer_that_makes_no_sense_is_no_verdict(answer: dict[str, Any]) -> None:
    (v,) = await toy_segments("v")

    async def says(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        return {"v": 1, **answer}

    v._verify = says  # type: ignore[method-assign]
    steps = StepClient(lambda name: v.peers[name])
    with pytest.raises(StepError, match="not the answer of a verifier"):
        await steps.verify(Hop(**v.hop), "s", 0, ("float32", [1, 1], bytes(8)), 5)
    await steps.connections.close()
    await v.die()
