"""The gateway as a process: what it says when it cannot start, and how it ends."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import openai
import pytest

from splitinference_gateway.settings import Settings, SettingsError
from tests.gateway.serving import MODEL
from tests.gateway.toy_chain import reference, toy_segments
from tests.segment.host import free_ports

PACKAGE = Path(__file__).parents[3] / "images" / "gateway"


def environment(**settings: object) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(PACKAGE), **{f"SI_{name.upper()}": str(value) for name, value in settings.items()}}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "SI_MODEL_PATH: Field required"),
        ({"model_path": "/nowhere", "name": "m", "insecure": True}, "/nowhere/tokenizer.json is missing"),
        ({"model_path": "/nowhere", "name": "m"}, "SI_TLS_FOLDER and SI_IDENTITY must be set"),
    ],
)
def test_what_is_missing_is_said_in_a_line_and_nothing_starts(settings: dict[str, object], said: str) -> None:
    command = [sys.executable, "-m", "splitinference_gateway"]
    ended = subprocess.run(command, env=environment(**settings), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"SI_NAME": "m", "SI_PORT": "eighty"}, "SI_PORT: Input should be a valid integer"),
        ({"SI_MODEL_ID": "m"}, "SI_ROUTE_FILE, SI_ROUTE_CONFIGMAP and SI_NAME"),
        ({"SI_ROUTE_FILE": "/r"}, "SI_MODEL_ID and SI_NAME"),
        ({"SI_NAME": "m", "SI_STEP_SECONDS": "0"}, "SI_STEP_SECONDS: Input should be greater than 0"),
        ({"SI_NAME": "m", "SI_PEER_ADDRESSES": "{"}, "SI_PEER_ADDRESSES: "),
        ({"SI_NAME": "m", "SI_MAX_QUEUE": "-1"}, "SI_MAX_QUEUE: "),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_environment({"SI_MODEL_PATH": "/m", "SI_INSECURE": "true", **settings})


def test_settings_have_the_contracts_names_and_defaults() -> None:
    settings = Settings.from_environment(
        {
            "SI_NAME": "chat",
            "SI_MODEL_PATH": "/model",
            "SI_PEER_SUFFIX": "ns.svc.cluster.local",
            "SI_PORT": "",
            "SI_TLS_FOLDER": "/var/run/splitinference/tls",
            "SI_IDENTITY": "spiffe://cluster.local/ns/ai/si/chat",
        }
    )
    assert (settings.internal_port, settings.metrics_port, settings.insecure, settings.trusted_proxies) == (8444, 9090, False, ())
    assert (settings.port, settings.served_model, settings.route_object) == (8080, "chat", "chat-route")
    assert settings.address_of("chat-0-12-aa") == "chat-0-12-aa.ns.svc.cluster.local:8003"


@pytest.mark.anyio
async def test_on_sigterm_it_becomes_unready_finishes_its_streams_and_ends(tmp_path: Path, model_path: Path) -> None:
    (segment,) = await toy_segments("a")
    segment.seconds = 0.01
    route = '{"v": 1, "revision": "r", "pipelines": [[{"segment": "a", "model": "seg-a"}]]}'
    (tmp_path / "route.json").write_text(route)
    settings = environment(
        name=MODEL,
        model_path=model_path,
        route_file=tmp_path / "route.json",
        peer_addresses=f'{{"a": "127.0.0.1:{segment.port}"}}',
        host="127.0.0.1",
        internal_port=free_ports(1)[0],
        metrics_port=free_ports(1)[0],
        insecure=True,
        port=(port := free_ports(1)[0]),
        lameduck_seconds=0.5,
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "splitinference_gateway", env=settings)
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as http, openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
            await _until_status(http, f"{url}/readyz", 200)
            stream = await client.completions.create(model=MODEL, prompt="bye", max_tokens=150, temperature=0, stream=True)
            text = ""
            async for chunk in stream:
                if not text:
                    process.send_signal(signal.SIGTERM)
                    await _until_status(http, f"{url}/readyz", 503)  # and still answers: endpoints need a moment to be updated
                text += chunk.choices[0].text
        assert text == bytes(reference(b"bye", 150)).decode(errors="replace")
        assert await asyncio.wait_for(process.wait(), 10) == 0
        assert not segment.sequences
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await segment.die()


async def _until_status(http: aiohttp.ClientSession, url: str, status: int) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                async with http.get(url) as response:
                    if response.status == status:
                        return
            except aiohttp.ClientConnectionError:
                pass
            await asyncio.sleep(0.05)
