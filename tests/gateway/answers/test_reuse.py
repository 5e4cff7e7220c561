"""Exact reuse, seen by clients: who gets whose answer, which requests take part, and what makes the gateway forget."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.answers.reuse import Identity
from splitinference_gateway.routing.routes import Routes
from splitinference_gateway.settings import Settings, SettingsError
from splitinference_protocol.route import RouteDocument
from tests.gateway.model_folder import write_encoder
from tests.gateway.serving import MODEL, Serving, serving
from tests.gateway.toy_chain import reference, toy_segments

pytestmark = pytest.mark.anyio
KEYS = {"anna": {"Authorization": "Bearer key-of-anna"}, "ben": {"Authorization": "Bearer key-of-ben"}}


@asynccontextmanager
async def reusing(folder: Path, model_path: Path, **settings: Any) -> AsyncIterator[Serving]:
    """A gateway that keeps answers; each client has a key where `reuse` is `client`."""
    given: dict[str, Any] = {"reuse": "client", **settings}
    if given["reuse"] == "client":
        file = folder / "keys"
        file.write_text("key-of-anna\nkey-of-ben\n")
        given["api_keys_file"] = file
    async with serving(folder, model_path, await toy_segments("a", "b"), **given) as world:
        yield world


async def ask(
    world: Serving, who: str = "anna", path: str = "/v1/completions", cache: str | None = None, **body: Any
) -> tuple[int, Any, Any]:
    headers = {**KEYS.get(who, {}), **({} if cache is None else {"Cache-Control": cache})}
    asked = {"model": MODEL, "prompt": "same", "max_tokens": 12, "temperature": 0, **body}
    return await world.post(path, {name: value for name, value in asked.items() if value is not None}, headers=headers)


async def result(world: Serving, name: str) -> float:
    return await world.metric(f'splitinference_gateway_reuse_requests_total{{result="{name}"}}')


async def test_the_second_request_gets_the_answer_of_the_first_and_nothing_runs(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        _, first, before = await ask(world)
        ran = dict(world.segments[0].counts)
        _, second, after = await ask(world)
        assert dict(world.segments[0].counts) == ran
        assert ran, "the first request ran"
    assert before["X-Cache"] == "MISS"
    assert "Age" not in before
    assert after["X-Cache"] == "HIT"
    assert int(after["Age"]) >= 0
    assert first["choices"] == second["choices"]
    assert first["usage"] == second["usage"]
    assert first["id"] != second["id"], "it is another answer object with the same content"


async def test_off_by_default_and_no_header_says_anything(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a", "b")) as world:
        _, _, headers = await ask(world)
        _, _, again = await ask(world, cache="only-if-cached")
        assert await result(world, "miss") == 0
    assert "X-Cache" not in headers
    assert "X-Cache" not in again


OTHERS: list[dict[str, Any]] = [
    {"prompt": "same "},
    {"max_tokens": 11},
    {"seed": 3},
    {"top_p": 0.5},
    {"stop": ["zzz"]},
    {"logprobs": 1},
    {"logit_bias": {"101": 2}},
    {"n": 2},
    {"echo": True},
    {"repetition_penalty": 1.2},
    {"min_tokens": 2},
    {"ignore_eos": True, "stop_token_ids": [3]},
    {"guided_regex": "[a-z]{3}"},
]


async def test_whatever_shapes_the_answer_is_part_of_its_name(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        await ask(world)
        for other in OTHERS:
            status, _, headers = await ask(world, **other)
            assert (status, headers["X-Cache"]) == (200, "MISS"), other
            _, _, headers = await ask(world, **other)
            assert headers["X-Cache"] == "HIT", other


async def test_how_an_answer_is_sent_is_no_part_of_its_name(tmp_path: Path, model_path: Path) -> None:
    """A stream of what came whole before, and a chat's answer as a response."""
    async with reusing(tmp_path, model_path) as world:
        await ask(world)
        asked = {
            "model": MODEL,
            "prompt": "same",
            "max_tokens": 12,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with world.http.post(f"{world.url}/v1/completions", json=asked, headers=KEYS["anna"]) as response:
            lines = (await response.text()).splitlines()
        assert response.headers["X-Cache"] == "HIT"
        events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        chat = {"prompt": None, "messages": [{"role": "user", "content": "hi"}], "max_tokens": None}
        await ask(world, path="/v1/chat/completions", **chat, max_completion_tokens=9)
        _, told, headers = await ask(world, path="/v1/responses", prompt=None, max_tokens=None, input="hi", max_output_tokens=9)
    wanted = bytes(reference(b"same", 12)).decode(errors="replace")
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"]) == wanted
    assert len(events) > 3, "it is streamed in pieces, as it was made"
    assert events[-1]["usage"]["completion_tokens"] == 12
    assert lines[-2] == "data: [DONE]"
    assert headers["X-Cache"] == "HIT"
    assert told["output"][0]["type"] == "message"


async def test_a_request_with_chance_in_it_takes_no_part(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        for _ in range(2):
            _, _, headers = await ask(world, temperature=1)
            assert headers["X-Cache"] == "BYPASS"
        _, _, headers = await ask(world, temperature=1, seed=5)
        assert headers["X-Cache"] == "MISS"
        _, _, headers = await ask(world, temperature=1, seed=5)
        assert headers["X-Cache"] == "HIT"
        status, _, _ = await ask(world, temperature=1, cache="only-if-cached")
        assert status == 504
        assert await result(world, "bypass") == 2


async def test_a_client_never_gets_another_clients_answer(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        for who in ("anna", "ben"):
            _, _, headers = await ask(world, who)
            assert headers["X-Cache"] == "MISS", who
        _, _, headers = await ask(world, "ben")
        assert headers["X-Cache"] == "HIT"
        status, _, headers = await ask(world, "nobody")
        assert status == 401
        assert "X-Cache" not in headers


async def test_clients_without_names_share_only_where_that_is_said(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(SettingsError, match="SI_REUSE=client needs SI_API_KEYS_FILE or SI_TOKEN_AUDIENCE"):
        Settings.from_environment({"SI_NAME": "a", "SI_MODEL_PATH": "/m", "SI_INSECURE": "true", "SI_REUSE": "client"})
    async with reusing(tmp_path, model_path, reuse="all") as world:
        await ask(world, "anna")
        _, _, headers = await ask(world, "ben")
        assert headers["X-Cache"] == "HIT"


async def test_a_client_says_what_it_accepts(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        await ask(world)
        for cache, said in (("no-store", "BYPASS"), ("no-cache", "MISS"), ("max-age=0", "MISS"), ("max-age=60", "HIT")):
            _, answer, headers = await ask(world, cache=cache)
            assert headers["X-Cache"] == said, cache
            assert answer["choices"][0]["text"] == bytes(reference(b"same", 12)).decode(errors="replace")


async def test_nothing_is_kept_of_a_request_that_says_so(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        await ask(world, cache="no-store")
        status, said, _ = await ask(world, cache="only-if-cached")
        assert status == 504
        assert said["error"]["code"] == "not_cached"
        await ask(world)
        status, _, headers = await ask(world, cache="only-if-cached")
        assert (status, headers["X-Cache"]) == (200, "HIT")


async def test_answers_grow_old(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path, reuse_seconds=100.0) as world:
        reuse, now = world.gateway.reuse, [1000.0]
        reuse.clock = reuse.memory.clock = lambda: now[0]
        await ask(world)
        now[0] += 70
        _, _, headers = await ask(world)
        assert (headers["X-Cache"], headers["Age"]) == ("HIT", "70")
        for refused in ("max-age=69", "min-fresh=31"):
            assert (await ask(world, cache=f"{refused}, only-if-cached"))[0] == 504
        now[0] += 30
        _, _, headers = await ask(world)
        assert headers["X-Cache"] == "MISS"


async def test_identical_requests_in_flight_are_one_run(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        for segment in world.segments:
            segment.seconds = 0.02
        answers = await asyncio.gather(*(ask(world) for _ in range(6)))
        assert await world.metric('splitinference_gateway_tokens_total{kind="completion"}') == 12
    assert sorted(headers["X-Cache"] for _, _, headers in answers) == ["JOINED"] * 5 + ["MISS"]
    assert len({answer["choices"][0]["text"] for _, answer, _ in answers}) == 1


async def test_who_began_a_run_may_leave_and_the_others_get_it_whole(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        for segment in world.segments:
            segment.seconds = 0.02
        first = asyncio.create_task(ask(world, max_tokens=40))
        async with asyncio.timeout(20):
            while await result(world, "miss") == 0:
                await asyncio.sleep(0.01)
        second = asyncio.create_task(ask(world, max_tokens=40))
        async with asyncio.timeout(20):
            while await result(world, "joined") == 0:
                await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        _, answer, headers = await second
        assert headers["X-Cache"] == "JOINED"
        assert answer["choices"][0]["text"] == bytes(reference(b"same", 40)).decode(errors="replace")
        third = asyncio.create_task(ask(world, max_tokens=400, prompt="other"))
        async with asyncio.timeout(20):
            while not any(segment.sequences for segment in world.segments):
                await asyncio.sleep(0.01)
        third.cancel()
        await world.idle()
        assert not world.gateway.reuse._runs, "nobody waits for it: it has ended"


async def test_a_run_that_fails_is_kept_by_nobody(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path, replay_seconds=0.1, max_queue=0) as world:
        await world.segments[1].die()
        status, _, _ = await ask(world)
        assert status >= 500
        await world.segments[1].start()
        async with asyncio.timeout(30):
            while (answer := await ask(world))[0] != 200:
                await asyncio.sleep(0.05)
        assert answer[2]["X-Cache"] == "MISS"


def document(revision: str, *models: str) -> RouteDocument:
    hops = [{"segment": name, "model": model} for name, model in zip("ab", models, strict=True)]
    return RouteDocument.model_validate({"revision": revision, "pipelines": [hops]})


async def test_another_model_has_answers_of_its_own_and_another_split_has_not() -> None:
    routes = Routes()
    identity = Identity(routes, "the resource")
    assert identity() is None, "without a route nobody knows what would answer"

    def routed(*models: str) -> str | None:
        routes.apply(document(str(models), *models))
        return identity()

    first = routed("seg-11111111-0-4", "seg-11111111-4-9")
    assert routed("seg-11111111-0-6", "seg-11111111-6-9") == first
    assert routed("seg-22222222-0-6", "seg-22222222-6-9") != first
    assert Identity(routes, "another adapter")() != identity()
    assert Identity(routes, "the resource", "another tokenizer")() != identity()
    identity.by_cuts = True
    assert routed("seg-11111111-0-4", "seg-11111111-4-9") != routed("seg-11111111-0-6", "seg-11111111-6-9")


async def test_what_the_operator_says_of_the_resource_is_part_of_the_name(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        await ask(world)
        world.gateway.reuse.identity.told = "another adapter"
        assert (await ask(world))[2]["X-Cache"] == "MISS"


async def test_a_model_that_changed_meanwhile_leaves_nothing_behind(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        for segment in world.segments:
            segment.seconds = 0.02
        first = asyncio.create_task(ask(world))
        async with asyncio.timeout(20):
            while await result(world, "miss") == 0:
                await asyncio.sleep(0.01)
        world.gateway.reuse.identity.told = "another model"
        await first
        assert len(world.gateway.reuse.memory) == 0


async def test_wrong_answers_of_a_segment_make_it_forget_all(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path) as world:
        await ask(world)
        world.gateway.routes.distrust({"c"})
        world.gateway.routes.distrusted = frozenset({"c"})
        _, _, headers = await ask(world)
        assert headers["X-Cache"] == "MISS"
        _, _, headers = await ask(world)
        assert headers["X-Cache"] == "HIT", "once forgotten, new answers are kept again"


async def test_what_is_kept_is_bounded_in_bytes(tmp_path: Path, model_path: Path) -> None:
    async with reusing(tmp_path, model_path, reuse_bytes=2**20) as world:
        memory = world.gateway.reuse.memory
        memory.budget = 8 * 1500
        for number in range(20):
            await ask(world, prompt=f"number {number}")
        assert memory.used <= memory.budget
        assert 0 < len(memory) < 20
        assert await world.metric("splitinference_gateway_reuse_bytes") == memory.used
        assert (await ask(world, prompt="number 19"))[2]["X-Cache"] == "HIT"
        assert (await ask(world, prompt="number 0"))[2]["X-Cache"] == "MISS"
        kept = len(memory)
        await ask(world, prompt="long", max_tokens=100)
        assert (await ask(world, prompt="long", max_tokens=100))[2]["X-Cache"] == "MISS", "an eighth of the budget is too little for it"
        assert len(memory) >= kept - 1


async def test_embeddings_scores_and_tensors_take_part(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "model")
    async with reusing(tmp_path, folder) as world:
        plain = {"prompt": None, "max_tokens": None, "temperature": None}
        _, first, before = await ask(world, path="/v1/embeddings", **plain, input=["hi", "ho"])
        _, second, after = await ask(world, path="/v1/embeddings", **plain, input=["hi", "ho"])
        assert (before["X-Cache"], after["X-Cache"], first == second) == ("MISS", "HIT", True)
        _, _, coded = await ask(world, path="/v1/embeddings", **plain, input=["hi", "ho"], encoding_format="base64")
        assert coded["X-Cache"] == "HIT"
        _, _, other = await ask(world, path="/v1/embeddings", **plain, input=["h", "iho"])
        assert other["X-Cache"] == "MISS", "rows are told apart, not only their tokens"
        for path, body in (("/v1/score", {"text_1": "a", "text_2": ["b"]}), ("/v1/rerank", {"query": "a", "documents": ["c"]})):
            assert (await ask(world, path=path, **plain, **body))[2]["X-Cache"] == "MISS"
            assert (await ask(world, path=path, **plain, **body))[2]["X-Cache"] == "HIT"
        ids = {"name": "input_ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 3]}
        infer = {"inputs": [ids], "outputs": [{"name": "sentence_embedding"}]}
        answers = [await world.post(f"/v2/models/{MODEL}/infer", infer, headers=KEYS["anna"]) for _ in range(2)]
        assert [headers["X-Cache"] for _, _, headers in answers] == ["MISS", "HIT"]
        assert answers[0][1] == answers[1][1]
        changed = {"inputs": [{**ids, "shape": [3, 1]}], "outputs": infer["outputs"]}
        assert (await world.post(f"/v2/models/{MODEL}/infer", changed, headers=KEYS["anna"]))[2]["X-Cache"] == "MISS"
        refused = await world.post(f"/v2/models/{MODEL}/infer", {**infer, "outputs": [{"name": "x"}]}, headers=KEYS["anna"])
        assert refused[0] == 400
