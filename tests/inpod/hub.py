"""A small Hugging Face hub on the loopback: API, redirects to another host for large files, ranges, tokens."""

import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from tests.adapters.serving import Request, Response, serving

LARGE = (".safetensors", ".gguf")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it has, and what it was asked."""

    files: dict[str, bytes]
    token: str = ""
    gated: bool = False
    port: int = 0
    store_port: int = 0
    asked: list[Request] = field(default_factory=list)
    stored: list[Request] = field(default_factory=list)
    breaks_after: int = 0
    store_path: str = ""
    longer_by: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Response:
        """The hub itself."""
        self.asked.append(request)
        listing = request.path.startswith("/api/models/")
        if self.token and not (self.gated and listing) and request.headers.get("authorization") != f"Bearer {self.token}":
            return Response(b"{}", 401)
        if request.path.startswith("/api/models/owner/model/revision/main"):
            siblings = [{"rfilename": name, "size": len(data), **self._lfs(name, data)} for name, data in self.files.items()]
            return Response(json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        name = request.path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
        if name not in self.files:
            return Response(b"no such file", 404)
        if name.endswith(LARGE):
            return Response(status=302, headers={"Location": f"http://localhost:{self.store_port}{self.store_path or '/' + name}"})
        return Response(self.files[name])

    def answer_store(self, request: Request) -> Response:
        """Where large files are."""
        self.stored.append(request)
        if request.path.strip("/") not in self.files:
            return Response(b"gone", 404)
        data = self.files[request.path.strip("/")] + bytes(self.longer_by)
        first, last = 0, len(data) - 1
        if found := request.headers.get("range"):
            start, _, end = found.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        whole = data[first : last + 1]
        if self.breaks_after and first == 0:
            cut, self.breaks_after = whole[: self.breaks_after], 0
            return Response(cut, headers={"Content-Length": str(len(whole)), "Connection": "close"})
        return Response(whole, 206 if "range" in request.headers else 200)

    def _lfs(self, name: str, data: bytes) -> dict[str, object]:
        if not name.endswith(LARGE):
            return {"blobId": hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()}
        return {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


@contextmanager
def a_hub(files: dict[str, bytes], token: str = "", gated: bool = False) -> Iterator[FakeHub]:
    """A hub that has these files in owner/model. `gated`: anybody may see the list of files, and only who has the token the files."""
    hub = FakeHub(files, token, gated)
    with serving(hub.answer) as hub.port, serving(hub.answer_store) as hub.store_port:
        yield hub


@contextmanager
def endless(answer: bytes, forever: bytes = b"x" * 65536) -> Iterator[str]:
    """A server that answers every request with this and then never ends; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def flood(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(answer)
            while not stop.is_set():
                connection.sendall(forever)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=flood, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
