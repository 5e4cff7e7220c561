"""Operators as processes, as the image runs them, against an API server of the test's own."""

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from splitinference.cli.bench.control.control_plane import free_port
from tests import waiting

SECONDS = 20.0  # more than a Lease takes to run out


@dataclass
class Operator:
    """One process."""

    process: "subprocess.Popen[bytes]"
    metrics_port: int
    health_port: int

    def get(self, port: int, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    @property
    def healthy(self) -> bool:
        """As the kubelet asks."""
        return self.get(self.health_port, "/healthz") != ""

    @property
    def leads(self) -> bool:
        """As its own metrics have it."""
        return "splitinference_leader 1.0" in self.get(self.metrics_port, "/metrics")

    def send(self, number: signal.Signals) -> None:
        """A signal to this process alone."""
        os.kill(self.process.pid, number)

    def ends(self) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(120)


@contextmanager
def an_operator(kubeconfig: str, **settings: str) -> Iterator[Operator]:
    """The process, healthy, until the block ends."""
    found = next((made for _ in range(3) if (made := _started(kubeconfig, settings)) is not None), None)
    assert found is not None, "it ended at once, three times"
    try:
        yield found
    finally:
        _end(found)


def _started(kubeconfig: str, settings: dict[str, str]) -> Operator | None:
    """None where it ended at once: somebody may have taken one of its ports meanwhile."""
    ports = free_port(), free_port()
    given = {"METRICS_PORT": str(ports[0]), "HEALTH_PORT": str(ports[1]), "RETRY_SECONDS": "0.5", "RESYNC_SECONDS": "1", **settings}
    given.setdefault("ALLOWED_HOST_PATHS", '["/models"]')
    environment = {**os.environ, "KUBECONFIG": kubeconfig} | {f"SPLITINFERENCE_{name}": value for name, value in given.items()}
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-m", "splitinference"], env=environment)
    found = Operator(process, *ports)
    try:
        until(lambda: process.poll() is not None or found.healthy, "it is healthy")
    except BaseException:
        _end(found)
        raise
    return found if process.poll() is None else None


def _end(operator: Operator) -> None:
    if operator.process.poll() is None:
        operator.process.send_signal(signal.SIGCONT)
        operator.process.kill()
    operator.process.wait()


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for as long as a busy machine may need."""
    waiting.until(holds, SECONDS, what, pause_seconds=0.1)
