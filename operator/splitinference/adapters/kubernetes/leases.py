"""Leases of the Kubernetes API (coordination.k8s.io/v1), and the threads that hold one.

The official client has an election of its own, but only over ConfigMaps in the pinned version, and it ends the process when the API server
is away; this one goes on when it is back, if nobody else has taken over.
"""

import http.server
import logging
import os
import signal
import socket
import socketserver
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from kubernetes import client

from splitinference.adapters.kubernetes.api import AlreadyThereError, ConflictError, NotFoundError, api_path
from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.controller.runtime.leadership import Leadership, Lease

log = logging.getLogger(__name__)

RENEW_SECONDS = 2.0
CALL_SECONDS = 2.0
_POLL_SECONDS = 2.0


def boot_seconds() -> float:
    """Seconds since the machine started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def new_identity() -> str:
    """Names this process, and never another one."""
    return f"{socket.gethostname()}_{uuid.uuid4()}"


class KubeLeases(KubeCluster):
    """Implements `Leases`. `called` is told each request's method."""

    def __init__(self, api: client.ApiClient, duration_seconds: float, called: Callable[[str], None] = lambda method: None) -> None:
        super().__init__(api, CALL_SECONDS)
        self._duration = duration_seconds
        self._called = called

    def read(self, namespace: str, name: str) -> Lease | None:
        """The Lease."""
        found = self.get("Lease", namespace, name)
        return None if found is None else _read(found)

    def write(self, namespace: str, name: str, holder: str, before: Lease | None) -> Lease | None:
        """Write it, at its version."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        changed = before is None or before.holder != holder
        spec: dict[str, Any] = {
            "holderIdentity": holder,
            # An empty one says that it may be taken at once.
            "leaseDurationSeconds": round(self._duration) if holder else 1,
            "renewTime": now,
            "leaseTransitions": 0 if before is None else before.transitions + (1 if changed and holder else 0),
        }
        if changed:
            spec["acquireTime"] = now
        about = {"name": name, "namespace": namespace, **({"resourceVersion": before.version} if before else {})}
        # A merge patch: labels of the chart stay, and so does the time of acquiring.
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": about, "spec": spec}
        return self._write_if_same(namespace, name, body, create=before is None)

    def _write_if_same(self, namespace: str, name: str, body: dict[str, Any], create: bool) -> Lease | None:
        method, path = ("POST", api_path("Lease", namespace)) if create else ("PATCH", api_path("Lease", namespace, name))
        try:
            content = "application/json" if create else "application/merge-patch+json"
            return _read(self._call(method, path, body=body, content_type=content))
        except (ConflictError, AlreadyThereError, NotFoundError):
            return None
        except RefusedError as error:
            raise UnavailableError(f"the Lease {namespace}/{name} cannot be written: {error}") from error

    def _call(self, method: str, path: str, **how: Any) -> Any:
        self._called(method)
        return super()._call(method, path, **how)


def _read(lease: dict[str, Any] | Any) -> Lease:
    spec = lease.get("spec") or {}
    return Lease(
        holder=str(spec.get("holderIdentity") or ""),
        version=str(lease["metadata"]["resourceVersion"]),
        duration_seconds=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
    )


@contextmanager
def healthy(port: int) -> Iterator[None]:
    """Answer the kubelet's probes on the port until the block ends: who stands by is alive and ready."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"standby": true}')

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            # Not as http.server does it: that asks DNS for the name of this address, which may take a minute.
            socketserver.TCPServer.server_bind(self)
            self.server_name, self.server_port = "standby", port

    server = Server(("", port), Handler)  # the kubelet asks by the pod's address, of either family
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="standby", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def wait_to_lead(leadership: Leadership, stop: threading.Event) -> bool:
    """Stand by until this process leads; False if `stop` was set before."""
    said = False
    while not stop.is_set():
        try:
            left = leadership.take()
        except (UnavailableError, RefusedError) as error:
            log.warning("cannot take the Lease: %s", error)
            left = _POLL_SECONDS
        if left is None:
            return True
        if not said:
            log.info("another replica leads; standing by")
            said = True
        # Not later than it may become free: a takeover should not wait for the next look.
        stop.wait(min(_POLL_SECONDS, max(left, 0.1)))
    return False


@contextmanager
def holding(leadership: Leadership) -> Iterator[None]:
    """Renew until the block ends, then give the Lease back. Ends the process, as SIGTERM does, when somebody else has taken it."""
    done = threading.Event()

    def renewing() -> None:
        away = False
        while not done.wait(RENEW_SECONDS):
            try:
                leadership.renew()
            except (UnavailableError, RefusedError) as error:
                if not away and not leadership.leads():
                    log.warning("the Lease cannot be renewed, so nothing is changed for now: %s", error)
                    away = True
                continue
            if leadership.lost:
                log.error("another replica has taken the Lease; this one ends")
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if away:
                log.info("the Lease is renewed again")
                away = False

    thread = threading.Thread(target=renewing, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with suppress(UnavailableError, RefusedError):
            leadership.release()
