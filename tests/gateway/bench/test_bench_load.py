"""The client of `bench serve` against a gateway that serves: what it reads from a stream is what was said."""

from pathlib import Path

import pytest

from splitinference.cli.bench.serving.load import load
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

pytestmark = pytest.mark.anyio


async def test_each_stream_has_its_text_its_tokens_and_its_times(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("toy-a", "toy-b")) as world:
        port = int(world.url.rpartition(":")[2])
        prompts = ["one", "another one"]
        found = await load(port, [{"model": MODEL, "prompt": prompt, "max_tokens": 20} for prompt in prompts], 30)
        for prompt, stream in zip(prompts, found["streams"], strict=True):
            assert stream["text"] == await world.complete(prompt, 20)
            assert stream["tokens"] == 20
            assert stream["first_ms"] + sum(stream["gaps_ms"]) <= stream["ms"] + 0.1 <= found["ms"] + 0.2


async def test_a_refusal_is_told_with_what_the_gateway_said(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("toy-a")) as world:
        with pytest.raises(RuntimeError, match="nobody"):
            await load(int(world.url.rpartition(":")[2]), [{"model": "nobody", "prompt": "x", "max_tokens": 2}], 30)
