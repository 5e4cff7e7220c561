"""segment-probe: exit 0 if one token runs through this segment's layers. Standard library only, and little of it.

It runs every few seconds on a fraction of a core, so it speaks HTTP over a plain socket: importing http.client alone takes longer
than the rest.
"""

import json
import os
import socket
import sys
import time
from typing import Any

TIMEOUT_S = 5.0


class ProbeError(Exception):
    """The segment did not answer as it should; the message says how."""


def exchange(port: int, path: str, body: bytes, headers: str, deadline: float) -> tuple[int, str, bytes]:
    """POST to 127.0.0.1 and read until the server closes: status, headers in small letters, body."""
    with socket.create_connection(("127.0.0.1", port), timeout=max(0.05, deadline - time.monotonic())) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body
        )
        received = bytearray()
        expected: int | None = None
        while expected is None or len(received) < expected:
            connection.settimeout(max(0.05, deadline - time.monotonic()))
            piece = connection.recv(65536)
            if not piece:
                break
            received += piece
            end = received.find(b"\r\n\r\n")
            if expected is None and end >= 0:
                for line in bytes(received[:end]).lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        expected = end + 4 + int(line.split(b":")[1])
    head, _, content = bytes(received).partition(b"\r\n\r\n")
    lines = head.decode("latin-1")
    if not lines.startswith("HTTP/1."):
        raise ProbeError("the answer is not HTTP")
    return int(lines.split(" ", 2)[1]), lines.lower(), content


def ask(port: int, model: str, meta: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Send one META without a tensor to the local server; the answer's META. ProbeError or OSError when there is none."""
    deadline = time.monotonic() + timeout_s
    tensors = {"META": json.dumps({"v": 1, "deadline_ms": timeout_s * 1e3, **meta}).encode(), "DATA": b"\0"}
    header = json.dumps(
        {
            "inputs": [
                {"name": name, "shape": [len(content)], "datatype": "UINT8", "parameters": {"binary_data_size": len(content)}}
                for name, content in tensors.items()
            ],
            "outputs": [{"name": "META", "parameters": {"binary_data": True}}],
        }
    ).encode()
    status, head, body = exchange(
        port,
        f"/v2/models/{model}/infer",
        header + b"".join(tensors.values()),
        f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(header)}\r\n",
        deadline,
    )
    if status != 200:
        raise ProbeError(f"HTTP {status}: {body[:200].decode('utf-8', 'replace')}")
    marker = "inference-header-content-length:"
    if marker not in head:
        raise ProbeError("the answer carries no binary output")
    answer: dict[str, Any] = json.loads(body[int(head.split(marker)[1].split("\r\n")[0]) :])
    return answer


def main() -> int:
    """Probe once. SI_HTTP_PORT and SI_MODEL_NAME say what; the first argument, if any, is the time limit in seconds."""
    try:
        limit = float(sys.argv[1]) if len(sys.argv) > 1 else TIMEOUT_S
        answer = ask(int(os.environ.get("SI_HTTP_PORT", "8000")), os.environ["SI_MODEL_NAME"], {"op": "probe"}, limit)
        if answer.get("ok") is not True:
            raise ProbeError(str(answer.get("error", answer)))
    except (OSError, ValueError, KeyError, ProbeError) as problem:
        print(f"segment-probe: {problem or type(problem).__name__}", file=sys.stderr)
        return 1
    print(f"ok, {answer['ms']} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
