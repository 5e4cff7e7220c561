"""Who may ask: keys in files, tokens of the cluster with a short memory, and how both look from outside."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from splitinference_gateway.access.api_keys import ApiKeys
from splitinference_gateway.access.token_review import TokenReviews
from splitinference_gateway.errors import ApiError
from splitinference_gateway.routing.configmap_watch import ApiServer
from tests.gateway.serving import serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio


@dataclass
class Reviewer:
    """An API server that knows some tokens; `status` is what it answers with."""

    users: dict[str, str]
    status: int = 201
    audiences: list[str] = field(default_factory=lambda: ["chat"])
    asked: list[dict[str, Any]] = field(default_factory=list)

    async def review(self, request: web.Request) -> web.Response:
        spec = json.loads(await request.read())["spec"]
        self.asked.append(spec)
        user = self.users.get(spec["token"])
        status = {"authenticated": True, "user": {"username": user}, "audiences": self.audiences} if user else {"error": "unknown"}
        return web.json_response({"status": status}, status=self.status)


@asynccontextmanager
async def reviews(reviewer: Reviewer, now: list[float]) -> AsyncIterator[TokenReviews]:
    app = web.Application()
    app.router.add_post("/apis/authentication.k8s.io/v1/tokenreviews", reviewer.review)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    made = TokenReviews(ApiServer(f"http://127.0.0.1:{port}"), "chat", seconds=60, clock=lambda: now[0])
    try:
        yield made
    finally:
        await made.close()
        await runner.cleanup()


async def refused(clients: Any, authorization: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await clients.identify(authorization, "10.0.0.1")
    return caught.value


async def test_a_token_is_asked_for_once_a_minute() -> None:
    now, reviewer = [100.0], Reviewer({"good": "anna"})
    async with reviews(reviewer, now) as clients:
        assert [await clients.identify("Bearer good", "") for _ in range(3)] == ["anna"] * 3
        assert reviewer.asked == [{"token": "good", "audiences": ["chat"]}]
        now[0] += 59
        assert await clients.identify("bearer good", "") == "anna"
        reviewer.users.clear()
        now[0] += 2
        assert (await refused(clients, "Bearer good")).status == 401
        assert len(reviewer.asked) == 2


async def test_refusals_are_remembered_too() -> None:
    reviewer = Reviewer({})
    async with reviews(reviewer, [0.0]) as clients:
        for _ in range(3):
            assert (await refused(clients, "Bearer bad")).code == "invalid_api_key"
        assert len(reviewer.asked) == 1


async def test_one_token_is_asked_for_once_however_many_bring_it_at_once() -> None:
    reviewer = Reviewer({"good": "anna"})
    async with reviews(reviewer, [0.0]) as clients:
        assert await asyncio.gather(*(clients.identify("Bearer good", f"10.0.0.{i}") for i in range(30))) == ["anna"] * 30
        assert len(reviewer.asked) == 1


async def test_made_up_tokens_of_one_address_are_few_and_others_are_still_asked_for() -> None:
    now, reviewer = [0.0], Reviewer({"good": "anna", "other": "otto"})
    async with reviews(reviewer, now) as clients:
        assert await clients.identify("Bearer good", "10.0.0.1") == "anna"
        statuses = [(await refused(clients, f"Bearer bad-{i}")).status for i in range(100)]
        assert statuses == [401] * 19 + [429] * 81
        assert len(reviewer.asked) == 20
        assert await clients.identify("Bearer good", "10.0.0.1") == "anna"  # known: nobody is asked
        assert await clients.identify("Bearer other", "10.0.0.2") == "otto"
        now[0] += 1
        assert [(await refused(clients, f"Bearer late-{i}")).status for i in range(3)] == [401, 401, 429]


async def test_made_up_tokens_push_no_user_out_and_their_questions_are_bounded_over_all_addresses() -> None:
    reviewer = Reviewer({"good": "anna"})
    async with reviews(reviewer, [0.0]) as clients:
        assert await clients.identify("Bearer good", "10.0.0.1") == "anna"
        statuses = []
        for i in range(400):
            with pytest.raises(ApiError) as caught:
                await clients.identify(f"Bearer bad-{i}", f"10.1.{i // 200}.{i % 200}")
            statuses.append(caught.value.status)
        assert statuses == [401] * 199 + [429] * 201
        assert await clients.identify("Bearer good", "10.0.0.1") == "anna"
        assert len(reviewer.asked) == 200


async def test_a_client_that_leaves_does_not_take_the_answer_from_others() -> None:
    reviewer = Reviewer({"good": "anna"})
    async with reviews(reviewer, [0.0]) as clients:
        first, second = (asyncio.create_task(clients.identify("Bearer good", "")) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        assert await second == "anna"
        assert len(reviewer.asked) == 1


@pytest.mark.parametrize(
    ("trusted", "header", "client"),
    [
        ("", "1.2.3.4", "127.0.0.1"),
        ("10.0.0.0/8", "1.2.3.4", "127.0.0.1"),
        ("127.0.0.1", "1.2.3.4", "1.2.3.4"),
        ("127.0.0.0/8, 10.0.0.0/8", "6.6.6.6, 1.2.3.4, 10.1.1.1", "1.2.3.4"),
        ("127.0.0.1", "::ffff:1.2.3.4", "1.2.3.4"),
        ("127.0.0.1", "x" * 300, "x" * 64),
        ("127.0.0.1", "", "127.0.0.1"),
    ],
)
async def test_a_client_is_its_address_whatever_it_says_unless_a_trusted_proxy_says_it(
    tmp_path: Path, model_path: Path, trusted: str, header: str, client: str
) -> None:
    async with serving(tmp_path, model_path, await toy_segments("a"), trusted_proxies=trusted) as world:
        named: list[str] = []
        enter = world.gateway.admission.enter

        class Told(type(world.gateway.admission)):  # type: ignore[misc]
            def enter(self, name: str, growth: Any) -> Any:
                named.append(name)
                return enter(name, growth)

        world.gateway.admission.__class__ = Told
        body = {"model": "toy", "prompt": "x", "max_tokens": 1}
        status, _, _ = await world.post(
            "/v1/completions", body, headers={"X-Forwarded-For": header, "X-Real-IP": "9.9.9.9", "Forwarded": "for=9.9.9.9"}
        )
        assert (status, named) == (200, [client])


async def test_a_token_for_another_audience_is_refused() -> None:
    async with reviews(Reviewer({"pods-own": "anna"}, audiences=[]), [0.0]) as clients:
        assert (await refused(clients, "Bearer pods-own")).status == 401


@pytest.mark.parametrize("header", ["", "Basic abc", "Bearer ", "Bearer"])
async def test_without_a_token_nobody_is_asked(header: str) -> None:
    reviewer = Reviewer({})
    async with reviews(reviewer, [0.0]) as clients:
        assert (await refused(clients, header)).status == 401
        assert (await refused(clients, "Bearer " + "x" * 20_000)).status == 401
        assert not reviewer.asked


async def test_an_api_server_that_cannot_say_is_503_and_asked_again() -> None:
    reviewer = Reviewer({"good": "anna"}, status=403)
    async with reviews(reviewer, [0.0]) as clients:
        error = await refused(clients, "Bearer good")
        assert (error.status, error.code, error.headers) == (503, "token_review_failed", {"Retry-After": "2"})
        reviewer.status = 201
        assert await clients.identify("Bearer good", "") == "anna"


async def test_keys_come_from_all_files_of_a_mounted_secret_and_follow_its_versions(tmp_path: Path) -> None:
    for version, keys in (("..v1", {"app": "sk-app\n", "team": "# ours\nsk-a\nsk-b"}), ("..v2", {"app": "sk-new"})):
        (tmp_path / version).mkdir()
        for name, text in keys.items():
            (tmp_path / version / name).write_text(text)
    mount = tmp_path / "keys"
    mount.mkdir()
    (mount / "..data").symlink_to(tmp_path / "..v1")
    for name in ("app", "team"):
        (mount / name).symlink_to(f"..data/{name}")
    clients = ApiKeys(mount)
    assert len({await clients.identify(f"Bearer {key}", "") for key in ("sk-app", "sk-a", "sk-b")}) == 3
    assert (await refused(clients, "Bearer # ours")).status == 401
    (mount / "..new").symlink_to(tmp_path / "..v2")  # as the kubelet does it: one rename, then what is no longer there goes
    (mount / "..new").rename(mount / "..data")
    assert await clients.identify("Bearer sk-a", "")  # a file without content: the keys known so far stay
    (mount / "team").unlink()
    assert await clients.identify("Bearer sk-new", "")
    assert (await refused(clients, "Bearer sk-app")).status == 401
