"""A gateway that serves: the real application in a real HTTP server on loopback, with segments behind it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import uvicorn

from splitinference_gateway.__main__ import client_config
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.server.listeners import Sockets
from splitinference_gateway.settings import Settings
from tests.gateway.toy_chain import ToySegment

MODEL = "toy"


@dataclass
class Serving:
    """What a test holds in its hands."""

    url: str
    gateway: Gateway
    segments: list[ToySegment]
    route_file: Path
    http: aiohttp.ClientSession
    kserve_port: int = 0
    internal_url: str = ""
    metrics_url: str = ""

    @property
    def client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    async def complete(self, prompt: str, tokens: int, **more: Any) -> str:
        async with self.client as client:
            answer = await client.completions.create(model=MODEL, prompt=prompt, max_tokens=tokens, **{"temperature": 0, **more})
        return answer.choices[0].text

    async def get(self, path: str) -> Any:
        base = self.internal_url if path.startswith("/internal/") else self.url
        async with self.http.get(base + path) as response:
            return await response.json()

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any, Any]:
        async with self.http.post(self.url + path, data=body if isinstance(body, bytes) else json.dumps(body), **more) as response:
            return response.status, json.loads(await response.text()), response.headers

    def route(self, *pipelines: Sequence[ToySegment], revision: str, drain_seconds: float = 30, **more: Any) -> None:
        """Write the route document, whole at once; `more` are further fields of it."""
        hops = [[segment.hop for segment in pipeline] for pipeline in pipelines]
        new = self.route_file.with_suffix(".new")
        new.write_text(json.dumps({"v": 1, "revision": revision, "pipelines": hops, "drainSeconds": drain_seconds, **more}))
        new.rename(self.route_file)

    async def routed(self, revision: str) -> None:
        """Until the gateway has taken this route."""
        async with asyncio.timeout(20):
            while (await self.get("/internal/routes"))["revision"] != revision:
                await asyncio.sleep(0.02)

    async def idle(self) -> None:
        """Until no segment holds any sequence."""
        async with asyncio.timeout(20):
            while any(segment.sequences for segment in self.segments):
                await asyncio.sleep(0.02)

    async def metric(self, line: str) -> float:
        """The value of one series, 0 when it is not there."""
        async with self.http.get(f"{self.metrics_url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next((float(entry.rsplit(" ", 1)[1]) for entry in lines if entry.startswith(line + " ")), 0.0)


@asynccontextmanager
async def serving(
    folder: Path,
    model_path: Path,
    segments: list[ToySegment],
    *,
    routed: bool = True,
    environment: Mapping[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Serving]:
    """Serve one pipeline of all the segments; settings are the gateway's."""
    route_file = folder / "route.json"
    given = {"step_seconds": 10.0, "replay_seconds": 30.0, "prefill_chunk_tokens": 8, "max_context_tokens": 4096, **settings}
    given = {"host": "127.0.0.1", "port": 0, "internal_port": 0, "metrics_port": 0, "insecure": True, "shutdown_seconds": 5, **given}
    peers = segments[0].peers if segments else {}
    gateway = Gateway.build(
        Settings(name=MODEL, route_file=route_file, model_path=model_path, peer_addresses=peers, lameduck_seconds=0, **given),
        environment or {},
    )
    sockets = Sockets.bound(gateway.settings)
    config = client_config(gateway, sockets)
    state = config.app.state
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve(sockets=list(sockets.clients)))
    while not server.started:
        await asyncio.sleep(0.01)
        if running.done():
            running.result()
    port, inside, metrics = (own.getsockname()[1] for own in (sockets.clients[0], sockets.internal[0], sockets.metrics[0]))
    async with aiohttp.ClientSession() as http:
        urls = [f"http://{'[::1]' if ':' in given['host'] else '127.0.0.1'}:{number}" for number in (port, inside, metrics)]
        kserve_port = getattr(state, "kserve_port", 0)
        world = Serving(urls[0], gateway, segments, route_file, http, kserve_port, internal_url=urls[1], metrics_url=urls[2])
        try:
            if routed:
                world.route(segments, revision="r1")
                await world.routed("r1")
            yield world
        finally:
            server.should_exit = True
            await running
            for segment in segments:
                await segment.die()
