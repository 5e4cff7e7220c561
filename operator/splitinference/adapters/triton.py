"""Triton: a segment is proved by a real inference through it, as docs/reference/data-plane.md has it (`op: probe`), over KServe v2 HTTP.

Nothing less will do: Triton says "ready" even when the process that computes is dead.
"""

import errno
import json
import os
import time
from typing import Any

import requests

from splitinference.adapters.failures import in_words
from splitinference.controller.manifests import HTTP_PORT
from splitinference.controller.ports import Proof

_NOTHING = [0]
_NO_ROUTE = os.strerror(errno.EHOSTUNREACH)
_BUSY = ("overloaded", "deadline_exceeded", "kv_full")


class TritonSegments:
    """Implements `Segments`."""

    def __init__(self, timeout_seconds: float, port: int = HTTP_PORT) -> None:
        self._timeout = timeout_seconds
        self._port = port

    def prove(self, namespace: str, segment: str, model: str, pod_ip: str) -> Proof:
        """One token through this segment's own layers."""
        meta = json.dumps({"v": 1, "op": "probe", "deadline_ms": int(self._timeout * 1000)}).encode()
        request = {"inputs": [_tensor("META", list(meta)), _tensor("DATA", _NOTHING)]}
        host = f"[{pod_ip}]" if ":" in pod_ip else pod_ip
        started = time.perf_counter()
        try:
            url = f"http://{host}:{self._port}/v2/models/{model}/infer"
            with requests.Session() as session:
                session.trust_env = False  # a proxy for what is outside knows no pods
                answer = session.post(url, json=request, timeout=self._timeout)
        except requests.ConnectTimeout:
            why = f"{namespace}/{segment} cannot be reached at {pod_ip}:{self._port}: no connection within {self._timeout:g} s"
            return Proof(ok=False, why=why, unreachable=True)
        except requests.Timeout:
            return Proof(ok=False, why=f"{namespace}/{segment} did not answer within {self._timeout:g} s")
        except requests.RequestException as error:
            words = in_words(error)
            # Refused means that the node is there and the server is not; without a route, neither is; anything else may be the network.
            why = f"{namespace}/{segment} cannot be reached at {pod_ip}:{self._port}: {words}"
            return Proof(ok=False, why=why, dead="refused" in words, unreachable=_NO_ROUTE in words)
        if answer.status_code != requests.codes.ok:
            return Proof(ok=False, why=f"{namespace}/{segment} answered {answer.status_code}: {_error(answer)}", dead=True)
        return _judge(answer, f"{namespace}/{segment}", (time.perf_counter() - started) * 1000)


def _judge(answer: requests.Response, name: str, milliseconds: float) -> Proof:
    try:
        meta = _meta(answer.json())
    except (ValueError, KeyError, TypeError) as error:
        return Proof(ok=False, why=f"{name} answered with something else than a segment does: {in_words(error)}", dead=True)
    if meta.get("ok") is True:
        return Proof(ok=True, milliseconds=milliseconds)
    problem = meta.get("error")
    said = problem if isinstance(problem, dict) else {}
    code = str(said.get("code", "internal"))
    return Proof(ok=False, why=f"{name} failed its own test: {code}: {said.get('message', meta)}"[:500], dead=code not in _BUSY)


def _meta(body: dict[str, Any]) -> dict[str, Any]:
    data = {output["name"]: output["data"] for output in body["outputs"]}["META"]
    meta = json.loads(bytes(data))
    if not isinstance(meta, dict):
        raise TypeError("META is no object")
    return meta


def _tensor(name: str, data: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": "UINT8", "shape": [len(data)], "data": data}


def _error(answer: requests.Response) -> str:
    try:
        return str(answer.json().get("error", answer.text))[:300]
    except (ValueError, AttributeError):
        return answer.text[:300]
