"""Every step on two nodes: who is to blame where they differ is settled by a third, and nobody can agree without computing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.pipeline import replicas
from tests.gateway.pipeline.test_verification import PROMPT, checks, report, until, verification
from tests.gateway.serving import Serving, serving
from tests.gateway.toy_chain import ToySegment, toy_segments


def replicated(
    before: ToySegment | None, checked: list[ToySegment], after: ToySegment, replica: ToySegment, referee: ToySegment
) -> dict[str, Any]:
    return verification({**checks(before, checked, after, replica), "referee": referee.hop})


async def six() -> list[ToySegment]:
    return await toy_segments("a", "b", "c", "r", "t", "d")


async def ended(world: Serving) -> None:
    await until(lambda: world.gateway.chain.verifier._running == 0)


@pytest.mark.anyio
async def test_every_step_of_every_sequence_is_computed_on_a_second_node_and_the_third_rests(tmp_path: Path, model_path: Path) -> None:
    a, b, c, r, t, _ = segments = await six()
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        for _ in range(3):
            await world.complete(PROMPT, 90)
        await ended(world)
        ran = sum(b.chunks)
        assert sum(count for _, count in r.verified) == ran
        assert not t.verified
        assert await report(world) == {"sampled": 3, "checkedTokens": ran, "skipped": 0, "failed": {}}
        await world.idle()
        assert not r.sequences
        assert world.gateway.chain.verifier.kept.used == 0, "what was kept is given back"


@pytest.mark.anyio
async def test_the_replica_is_not_told_what_the_checked_segment_gave(tmp_path: Path, model_path: Path) -> None:
    """Otherwise it could agree without computing anything."""
    a, b, c, r, t, _ = segments = await six()
    c.received_wrong = 0.001
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        await world.complete(PROMPT, 3)
        await ended(world)
        assert r.counts.keys() <= {"compute", "release"}
        ids = [token for data in r.asked for token in memoryview(data).cast("f")]
        assert all(value == int(value) for value in ids), "the input's, which nobody has changed"


@pytest.mark.anyio
@pytest.mark.parametrize("first", [True, False], ids=["from the tokens", "from a witness"])
async def test_a_third_node_finds_that_the_serving_segment_is_wrong(tmp_path: Path, model_path: Path, first: bool) -> None:
    """Late in the sequence: the third one runs all before it first."""
    a, b, c, r, t, d = segments = await six()
    c.received_wrong, c.wrong_from = 0.5, 80
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, d, c], revision="plain")
        await world.routed("plain")
        expected = await world.complete(PROMPT, 150)
        checked = replicated(None, [a, b], c, r, t) if first else replicated(a, [b], c, r, t)
        world.route([a, b, c], revision="r1", drain_seconds=0, **checked)
        await world.routed("r1")
        running = asyncio.create_task(world.complete(PROMPT, 150))
        await until(lambda: bool(world.gateway.chain.verifier.failed))
        failed = (await report(world))["failed"]
        assert failed.keys() == ({"a", "b"} if first else {"b"})
        assert [position for position, _ in t.verified] == [sum(n for _, n in t.verified[:i]) for i in range(len(t.verified))]
        assert t.verified[0][0] == 0
        assert sum(n for _, n in t.verified) > 80
        world.route([d, c] if first else [a, d, c], revision="r2")
        if not first:
            assert await running == expected, "the sequence was run again from its first token"
        else:
            running.cancel()


@pytest.mark.anyio
async def test_a_third_node_finds_that_the_replica_is_wrong_and_the_sequence_stays(tmp_path: Path, model_path: Path) -> None:
    a, b, c, r, t, _ = segments = await six()
    r.wrong = 0.5
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        await world.complete(PROMPT, 100)
        await ended(world)
        assert (await report(world))["failed"].keys() == {"r"}
        assert await world.complete(PROMPT, 3), "what serves goes on"
        asked = r.counts["compute"]
        await world.complete(PROMPT, 3)
        assert r.counts["compute"] == asked, "the wrong replica is asked nothing more"
        assert (await report(world))["skipped"] >= 1


@pytest.mark.anyio
@pytest.mark.parametrize("why", ["the third is gone", "nothing may be kept", "all differ"])
async def test_where_nobody_settles_it_neither_of_the_two_goes_on(
    tmp_path: Path, model_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, r, t, _ = segments = await six()
    r.wrong, r.wrong_from = 0.5, 70
    async with serving(tmp_path, model_path, segments, routed=False, replay_seconds=0.5) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        if why == "the third is gone":
            await t.die()
        elif why == "nothing may be kept":
            world.gateway.chain.verifier.kept = replicas.Kept(most=10)
        else:
            t.wrong = 5.0
        await world.post("/v1/completions", {"model": "toy", "prompt": PROMPT, "max_tokens": 150})
        await ended(world)
        assert (await report(world))["failed"].keys() == {"b", "r"}


@pytest.mark.anyio
async def test_an_output_between_two_that_differ_blames_nobody(tmp_path: Path, model_path: Path) -> None:
    """Two that are apart by more than the tolerance, and a third that is within it of both."""
    a, b, c, r, t, _ = segments = await six()
    r.wrong, c.received_wrong, t.wrong = 0.04, -0.04, 0.0
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", verification={**replicated(a, [b], c, r, t)["verification"], "tolerance": 0.04})
        await world.routed("r1")
        await world.complete(PROMPT, 150)
        await ended(world)
        found = await report(world)
        assert (found["failed"], found["skipped"]) == ({}, 0)
        assert sum(n for _, n in t.verified) == sum(n for _, n in r.verified) == sum(b.chunks)


@pytest.mark.anyio
async def test_a_replica_that_gives_another_form_is_wrong(tmp_path: Path, model_path: Path) -> None:
    """It may not keep all checks from being made by answers that nobody can compare."""
    a, b, c, r, t, _ = segments = await six()

    async def narrow(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        count = meta["tensor"]["shape"][0]
        return {"v": 1, "ok": True, "tensor": {"dtype": "bfloat16", "shape": [count, 1]}, "data": bytes(2 * count)}

    r._compute = narrow  # type: ignore[method-assign]
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        await world.complete(PROMPT, 3)
        await ended(world)
        assert (await report(world))["failed"].keys() == {"r"}


@pytest.mark.anyio
async def test_no_more_of_a_replicas_answer_is_read_than_an_output_has(tmp_path: Path, model_path: Path) -> None:
    """It need not be trusted, and could fill the gateway's memory."""
    a, b, c, r, t, _ = segments = await six()

    async def huge(meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        count = meta["tensor"]["shape"][0]
        return {"v": 1, "ok": True, "tensor": {"dtype": "float32", "shape": [count, 1 << 20]}, "data": bytes(count << 22)}

    r._compute = huge  # type: ignore[method-assign]
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        asked: list[int] = []
        send = world.gateway.chain.steps.connections.send

        async def seen(hop: Any, meta: bytes, data: bytes, seconds: float, most: int) -> Any:
            asked.extend([most] if b'"compute"' in meta else [])
            return await send(hop, meta, data, seconds, most)

        world.gateway.chain.steps.connections.send = seen  # type: ignore[method-assign]
        await world.complete("x", 3)
        await ended(world)
        found = await report(world)
        assert (found["skipped"], found["checkedTokens"]) == (1, 0)
        assert asked
        assert max(asked) <= 4 * 64, "four bytes for each token of the toy"


@pytest.mark.anyio
async def test_a_replica_that_does_not_compute_is_counted(tmp_path: Path, model_path: Path) -> None:
    a, b, c, r, t, _ = segments = await six()
    r.errors.append("overloaded")
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        await world.complete(PROMPT, 3)
        await ended(world)
        found = await report(world)
        assert (found["failed"], found["skipped"], found["checkedTokens"]) == ({}, 1, 0)


@pytest.mark.anyio
async def test_a_sequence_waits_for_its_turn_rather_than_going_unchecked(tmp_path: Path, model_path: Path) -> None:
    a, b, c, r, t, _ = segments = await six()
    async with serving(tmp_path, model_path, segments, routed=False) as world:
        world.route([a, b, c], revision="r1", **replicated(a, [b], c, r, t))
        await world.routed("r1")
        verifier = world.gateway.chain.verifier
        verifier._running = 32
        asking = asyncio.create_task(world.complete(PROMPT, 3))
        await until(lambda: world.gateway.admission.running == 1)
        assert not b.counts["step"]
        verifier._ended()
        assert await asking
        verifier._running -= 31
        await ended(world)
        assert (verifier.sampled, verifier.skipped) == (1, 0)
