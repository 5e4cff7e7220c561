"""The client of `bench serve`: runs inside a container beside the servers, by `python - '<what to do>' < this file`; standard library only.

It prints one line of JSON. Times are in milliseconds, by one monotonic clock.
"""

import asyncio
import itertools
import json
import os
import socket
import sys
import time
from typing import Any


def _since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 3)


async def stream(port: int, body: dict[str, Any], limit_s: float, host: str = "127.0.0.1") -> dict[str, Any]:
    """One streamed completion: when its first piece came, the gaps between pieces, its text and number of tokens.

    Raises:
        RuntimeError: the gateway refused it, or its stream ended early; with what it said.
    """
    async with asyncio.timeout(limit_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            content = json.dumps({"temperature": 0, **body, "stream": True, "stream_options": {"include_usage": True}}).encode()
            lines = (
                "POST /v1/completions HTTP/1.1",
                "Host: localhost",
                "Content-Type: application/json",
                f"Content-Length: {len(content)}",
            )
            head = "\r\n".join((*lines, "", ""))
            started = time.perf_counter()
            writer.write(head.encode() + content)
            status = (await reader.readline()).split(b" ")[1]
            if status != b"200":
                raise RuntimeError((await reader.read(2000)).decode(errors="replace"))
            text, came, tokens = "", [], 0
            while line := await reader.readline():
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    break
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event["error"]))
                if event.get("choices") and event["choices"][0].get("text"):
                    came.append(time.perf_counter())
                    text += event["choices"][0]["text"]
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if not came or not tokens:
                raise RuntimeError(f"the stream ended after {text!r}")
            gaps = [round((after - before) * 1e3, 3) for before, after in itertools.pairwise(came)]
            first = round((came[0] - started) * 1e3, 3)
            return {"first_ms": first, "gaps_ms": gaps, "ms": _since(started), "tokens": tokens, "text": text}
        finally:
            writer.close()


async def load(port: int, bodies: list[dict[str, Any]], limit_s: float, host: str = "127.0.0.1") -> dict[str, Any]:
    """All completions at once."""
    started = time.perf_counter()
    streams = await asyncio.gather(*(stream(port, body, limit_s, host) for body in bodies))
    return {"ms": _since(started), "streams": streams}


class Keeping:
    """One lasting HTTP connection to a segment's server, for KServe v2 inference with META and DATA."""

    def __init__(self, port: int, model: str) -> None:
        """Connect."""
        self._model = model
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def infer(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """The answer's META.

        Raises:
            RuntimeError: it is an error.
        """
        tensors = {"META": json.dumps({"v": 1, "deadline_ms": 30000, **meta}).encode(), "DATA": data}
        inputs = [
            {"name": name, "shape": [len(content)], "datatype": "UINT8", "parameters": {"binary_data_size": len(content)}}
            for name, content in tensors.items()
        ]
        head = json.dumps({"inputs": inputs, "outputs": [{"name": "META", "parameters": {"binary_data": True}}]}).encode()
        body = head + b"".join(tensors.values())
        line = f"POST /v2/models/{self._model}/infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/octet-stream\r\n"
        lengths = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Length: {len(body)}\r\n\r\n"
        self._socket.sendall((line + lengths).encode() + body)
        status = self._file.readline()
        headers = {}
        while line_read := self._file.readline().strip():
            name, _, value = line_read.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        answer = self._file.read(int(headers.get("content-length", 0)))
        if b" 200 " not in status:
            raise RuntimeError(answer[:500].decode(errors="replace"))
        fields: dict[str, Any] = json.loads(answer[int(headers["inference-header-content-length"]) :])
        if "error" in fields:
            raise RuntimeError(str(fields["error"]))
        return fields


def echo(port: int, model: str, route: list[dict[str, str]], sizes: list[int], times: int) -> dict[str, float]:
    """Cost of one hop by bytes: an echo along the route less an echo of the first segment alone, by the hops; medians of `times`."""
    connection, found = Keeping(port, model), {}
    for size in sizes:
        whole: list[float] = []
        alone: list[float] = []
        data = bytes(size)
        for turn in range(times + 5):
            for hops, into in ((route, whole), ([], alone)):
                started = time.perf_counter()
                connection.infer({"op": "echo", "route": hops}, data)
                if turn >= 5:
                    into.append(_since(started))
        found[str(size)] = round(max(0.0, sorted(whole)[times // 2] - sorted(alone)[times // 2]) / len(route), 4)
    return found


def main(asked: dict[str, Any]) -> Any:
    """Do what is asked."""
    match asked["do"]:
        case "load":
            return asyncio.run(load(asked["port"], asked["bodies"], asked["limit_s"], asked.get("host", "127.0.0.1")))
        case "echo":
            return echo(asked["port"], asked["model"], asked["route"], asked["sizes"], asked["times"])
        case "cpus":
            return sorted(os.sched_getaffinity(0))
        case other:
            raise ValueError(other)


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
