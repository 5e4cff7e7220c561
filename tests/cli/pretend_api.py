"""A real HTTP server in the role of the API server, and a kubeconfig for it: for answers that a real one gives only in trouble."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.adapters.serving import Request, Response, serving

GROUP = "/apis/splitinference.dev/v1alpha1"
Answer = Mapping[str, Any] | Response | Callable[[Request], Response]


def kubeconfig(folder: Path, server: str, namespace: str = "team", **user: Any) -> Path:
    """A kubeconfig with one context."""
    path = folder / "kubeconfig"
    context = {"cluster": "c", "user": "u", "namespace": namespace}
    content = {
        "apiVersion": "v1", "kind": "Config", "current-context": "x", "contexts": [{"name": "x", "context": context}],
        "clusters": [{"name": "c", "cluster": {"server": server}}], "users": [{"name": "u", "user": user or {"token": "t"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


def refusal(code: int, message: str, reason: str = "Forbidden") -> Response:
    """As the API server refuses."""
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
    return Response(json.dumps(body).encode(), code, {"Content-Type": "application/json"})


@contextmanager
def api_server(folder: Path, answers: Mapping[str, Answer]) -> Iterator[tuple[str, list[Request]]]:
    """Serve `answers` by the path before the query; all else is 404. The kubeconfig's path, and what was asked."""
    asked: list[Request] = []

    def answer(request: Request) -> Response:
        asked.append(request)
        found = answers.get(request.path.partition("?")[0])
        if found is None:
            return refusal(404, "the server could not find the requested resource", "NotFound")
        if isinstance(found, Response):
            return found
        if isinstance(found, Mapping):
            return Response(json.dumps(found).encode(), 200, {"Content-Type": "application/json"})
        return found(request)

    with serving(answer) as port:
        yield str(kubeconfig(folder, f"http://127.0.0.1:{port}")), asked


def items(*found: Any) -> dict[str, Any]:
    """A list."""
    return {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": list(found)}
