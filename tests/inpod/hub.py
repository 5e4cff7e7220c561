"""A small Hugging Face hub on the loopback: API, redirects to another host for large files, ranges, tokens."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.adapters.serving import Request, Response, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What it has, and what it was asked."""

    files: dict[str, bytes]
    token: str = ""
    port: int = 0
    store_port: int = 0
    asked: list[Request] = field(default_factory=list)
    stored: list[Request] = field(default_factory=list)
    breaks_after: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def answer(self, request: Request) -> Response:
        """The hub itself."""
        self.asked.append(request)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return Response(b"{}", 401)
        if request.path.startswith("/api/models/owner/model/revision/main"):
            siblings = [{"rfilename": name, "size": len(data), **self._lfs(name, data)} for name, data in self.files.items()]
            return Response(json.dumps({"sha": COMMIT, "siblings": siblings}).encode())
        name = request.path.removeprefix(f"/owner/model/resolve/{COMMIT}/")
        if name not in self.files:
            return Response(b"no such file", 404)
        if name.endswith(".safetensors"):
            return Response(status=302, headers={"Location": f"http://localhost:{self.store_port}/{name}"})
        return Response(self.files[name])

    def answer_store(self, request: Request) -> Response:
        """Where large files are."""
        self.stored.append(request)
        data = self.files[request.path.strip("/")]
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
        if not name.endswith(".safetensors"):
            return {}
        return {"lfs": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}


@contextmanager
def a_hub(files: dict[str, bytes], token: str = "") -> Iterator[FakeHub]:
    """A hub that has these files in owner/model."""
    hub = FakeHub(files, token)
    with serving(hub.answer) as hub.port, serving(hub.answer_store) as hub.store_port:
        yield hub
