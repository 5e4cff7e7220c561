"""The client of `bench mlperf`: one asks it through its standard input, and it says at once when a first token came and when all is there.

It runs beside the servers, by `python -c '<this file>' '<target>'`, or as a process of its own; standard library only. A line of its
input is `{"id": …, "body": {…}}`; a line of its output is `{"id": …, "is": "first"}`, `{"id": …, "is": "done", "tokens": …}` or
`{"id": …, "is": "failed", "why": …}`. It ends when its input does.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

_MOST_ANSWER = 16 * 2**20
_HEAD_LINES = 100


class RefusedError(Exception):
    """What the server answered instead."""


class Target:
    """Where requests go: a URL such as http://127.0.0.1:8080/v1/completions, headers to send along, and the seconds a request may take."""

    def __init__(self, url: str, headers: dict[str, str], limit_s: float) -> None:
        """Take the URL apart."""
        parts = urlsplit(url)
        self.host, self.path = parts.hostname or "", parts.path + (f"?{parts.query}" if parts.query else "")
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.port = parts.port or (443 if self.tls else 80)
        self.headers, self.limit_s = headers, limit_s

    def request(self, body: dict[str, Any]) -> bytes:
        """The request as bytes."""
        content = json.dumps(body).encode()
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {self.host}", "Connection: close", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join((*lines, f"Content-Length: {len(content)}", "", "")).encode() + content


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> AsyncIterator[bytes]:
    """The answer's body, piece by piece, chunked or not."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        while piece := await reader.read(65536):
            yield piece
        return
    while size := int((await reader.readline()).split(b";")[0].strip() or b"0", 16):
        yield await reader.readexactly(size)
        await reader.readline()


async def ask(target: Target, body: dict[str, Any], say: Any) -> int:
    """One request; `say` is called at its first token. The number of tokens, 0 for an answer that is no stream.

    Raises:
        Refused: the server answered with an error, or its stream ended early.
    """
    reader, writer = await asyncio.open_connection(target.host, target.port, ssl=target.tls)
    try:
        writer.write(target.request(body))
        await writer.drain()
        status = (await reader.readline()).split(b" ")[1:2]
        headers = {}
        for _ in range(_HEAD_LINES):
            name, _, value = (await reader.readline()).decode("latin-1").partition(":")
            if not name.strip():
                break
            headers[name.strip().lower()] = value.strip()
        if status != [b"200"]:
            said = b"".join([piece async for piece in _body(reader, headers)])
            raise RefusedError(said[:500].decode(errors="replace") or "the connection ended")
        if not body.get("stream"):
            async for _ in _body(reader, headers):
                pass
            return 0
        return await _tokens(_body(reader, headers), say)
    finally:
        writer.close()


async def _tokens(pieces: AsyncIterator[bytes], say: Any) -> int:
    left, tokens, ended, began = b"", 0, False, False
    async for piece in pieces:
        *lines, left = (left + piece).split(b"\n")
        if len(left) > _MOST_ANSWER:
            raise RefusedError("an endless line")
        for line in lines:
            if not line.startswith(b"data: "):
                continue
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            if "error" in event:
                raise RefusedError(str(event["error"])[:500])
            if not began and event.get("choices") and event["choices"][0].get("text"):
                began = True
                say()
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
    if not ended or not tokens:
        raise RefusedError("the stream ended early")
    return tokens


async def relay(target: Target) -> None:
    """Serve the input until it ends."""
    loop, running = asyncio.get_running_loop(), set[asyncio.Task[None]]()

    def say(**what: Any) -> None:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()

    async def one(number: int, body: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(target.limit_s):
                tokens = await ask(target, body, lambda: say(id=number, **{"is": "first"}))
        except TimeoutError:
            say(id=number, why=f"no answer within {target.limit_s:g} s", **{"is": "failed"})
        except (RefusedError, OSError, ValueError, EOFError, LookupError) as problem:
            say(id=number, why=str(problem) or type(problem).__name__, **{"is": "failed"})
        else:
            say(id=number, tokens=tokens, **{"is": "done"})

    say(**{"is": "ready"})
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        task = loop.create_task(one(asked["id"], asked["body"]))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    asyncio.run(relay(Target(asked["url"], asked["headers"], asked["limit_s"])))
