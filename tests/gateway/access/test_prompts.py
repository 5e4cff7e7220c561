"""Reading a request has a process, a time and a memory of its own: what goes beyond them is refused, and the next request is read."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.errors import ApiError
from splitinference_gateway.prompt_reading.prompts import Prompts
from splitinference_gateway.settings import Settings

pytestmark = pytest.mark.anyio
CHAT = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "hi"}]}).encode()
TEXT = json.dumps({"model": "toy", "prompt": "hi"}).encode()


@asynccontextmanager
async def reading(model_path: Path, **settings: Any) -> AsyncIterator[Prompts]:
    prompts = Prompts(Settings(name="toy", model_path=model_path, insecure=True, **settings), with_tokenizer=True)
    prompts.start()
    try:
        yield prompts
    finally:
        await prompts.close()


def with_template(folder: Path, model_path: Path, template: str) -> Path:
    shutil.copytree(model_path, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(template)
    return folder / "model"


async def refused(prompts: Prompts, body: bytes, kind: str = "chat") -> ApiError:
    with pytest.raises(ApiError) as caught:
        await prompts.text(kind, body, "client")
    return caught.value


async def test_prompts_and_choices_come_back_as_they_were_asked_for(model_path: Path) -> None:
    async with reading(model_path) as prompts:
        body = {"model": "toy", "prompt": ["ab", "c"], "n": 2, "max_tokens": 3, "seed": 7, "stop": "x", "logprobs": 1, "stream": True}
        read = await prompts.text("completion", json.dumps(body).encode(), "client")
        assert [list(prompt) for prompt in read.prompts] == [[97, 98], [99]]
        assert (read.n, read.most, read.seed, read.stops, read.sampling["logprobs"], read.stream) == (2, (3, 3), 7, ("x",), 1, True)
        chat = await prompts.text("chat", CHAT, "client")
        assert bytes(token for token in chat.prompts[0] if token < 256) == b"user: hi\nassistant:"


@pytest.mark.parametrize(
    ("template", "said", "code"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "chat template took more than",
            "request_too_complex",
        ),
        ("{% for a in range(9999999) %}{% endfor %}", "Range too big", "invalid_value"),
        ("{{ 'x' * messages[0].content | length * 999999999 }}", "chat template took more than", "request_too_complex"),
        ("{% for a in range(9999) %}{{ messages[0].content * 4999 }}{% endfor %}", "writes more than", "invalid_value"),
        ("{{ messages[0].nothing.more }}", "chat template refuses", "invalid_value"),
        ("{{ 1 // (messages | length - 1) }}", "chat template refuses", "invalid_value"),
        ("{{ messages.append(1) }}", "chat template refuses", "invalid_value"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "chat template refuses", "invalid_value"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "chat template refuses", "invalid_value"),
        ("{{ 'x' * 9999999999 }}", "chat template took more than", "request_too_complex"),
        ("{% if %}", "chat template cannot be used", "chat_template_broken"),
    ],
)
async def test_a_hostile_template_costs_its_own_request_only(tmp_path: Path, model_path: Path, template: str, said: str, code: str) -> None:
    model = with_template(tmp_path, model_path, template)
    async with reading(model, prompt_seconds=0.5, prompt_memory_mib=32) as prompts:
        for _ in range(2):
            error = await refused(prompts, CHAT)
            assert (error.status, error.code) == (400, code), error
            assert said in error.message
            assert str(tmp_path) not in error.message
        assert (await prompts.text("completion", TEXT, "client")).prompts


async def test_templates_that_do_not_end_do_not_use_up_the_workers_for_others(tmp_path: Path, model_path: Path) -> None:
    model = with_template(tmp_path, model_path, "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")
    async with reading(model, prompt_seconds=1.0) as prompts:
        endless = [asyncio.create_task(refused(prompts, CHAT)) for _ in range(6)]
        for _ in range(4):
            assert (await prompts.text("completion", TEXT, "another")).prompts
        assert not all(task.done() for task in endless)
        assert {error.code for error in await asyncio.gather(*endless)} == {"request_too_complex"}


async def test_the_process_is_started_again_when_it_ended(model_path: Path) -> None:
    async with reading(model_path, prompt_seconds=0.5) as prompts:
        assert (await prompts.text("completion", TEXT, "client")).prompts
        assert prompts._process is not None
        os.kill(prompts._process.pid, signal.SIGKILL)
        await asyncio.to_thread(prompts._process.wait)
        prompts._idle.pop().close()
        assert (await prompts.text("completion", TEXT, "client")).prompts


async def test_a_prompt_that_cannot_fit_is_refused_before_the_tokenizer_sees_it(model_path: Path) -> None:
    async with reading(model_path, max_context_tokens=100) as prompts:
        for kind, body in (
            ("completion", {"prompt": "x" * 901}),
            ("completion", {"prompt": [1] * 100}),
            ("chat", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x" * 10}] * 91}]}),
        ):
            error = await refused(prompts, json.dumps({"model": "toy", **body}).encode(), kind)
            assert (error.status, error.code) == (400, "context_length_exceeded")
            assert error.param == ("messages" if kind == "chat" else "prompt")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": ["x"] * 37}, "37 sequences; at most 36"),
        ({"prompt": ["x"] * 4, "n": 10}, "40 sequences; at most 36"),
        ({"prompt": ["x"] * 5000, "n": 128}, "5000 prompts are too many"),
        ({"prompt": "x", "max_tokens": 2000, "n": 128}, "128 sequences"),
        ({"prompt": ["x"] * 30, "max_tokens": 2000, "n": 1, "logprobs": 5}, "30 sequences"),
        ({"prompt": "x", "max_tokens": 2000, "n": 36, "logprobs": 5}, ""),
    ],
)
async def test_counts_are_bounded_before_anything_is_made_of_them(model_path: Path, body: dict[str, Any], said: str) -> None:
    async with reading(model_path, max_context_tokens=32_768) as prompts:
        raw = json.dumps({"model": "toy", **body}).encode()
        if "30 sequences" in said:
            raw = json.dumps({"model": "toy", **body, "max_tokens": 32_000}).encode()
            assert "log-probabilities; at most" in (await refused(prompts, raw, "completion")).message
        elif said:
            assert said in (await refused(prompts, raw, "completion")).message
        else:
            assert len((await prompts.text("completion", raw, "client")).prompts) == 1
