"""Real segment servers as processes on loopback, with the real model: started, asked, killed."""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.identities import IDENTITY, Authority
from tests.segment.host import family, free_ports

AUTHORITY = Authority()


def tls(folder: Path, role: str) -> dict[str, str]:
    """The settings that say who a process is; its certificate is made in `folder`, once: a process that starts may be reading it."""
    made = folder / f"tls-{role}"
    if not made.exists():
        AUTHORITY.write(made, role)
        if role == "gateway":
            (made / "prefix.key").write_bytes(os.urandom(32))
    return {"SI_TLS_FOLDER": str(made), "SI_IDENTITY": IDENTITY}


@dataclass(frozen=True)
class Inside:
    """What a gateway says on the ports that clients do not have: to the operator by mutual TLS, and to Prometheus."""

    internal: int
    metrics: int
    folder: Path

    @classmethod
    def of(cls, folder: Path) -> "Inside":
        """Two free ports; the operator's certificate is made in `folder`."""
        return cls(*free_ports(2), AUTHORITY.write(folder / "tls-operator", "operator"))

    @property
    def settings(self) -> dict[str, str]:
        """What the gateway is to be told."""
        return {"SI_INTERNAL_PORT": str(self.internal), "SI_METRICS_PORT": str(self.metrics)}

    def routes(self) -> Any:
        """The document with routes and what was observed."""
        context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
        context.check_hostname = False
        context.load_cert_chain(self.folder / "tls.crt", self.folder / "tls.key")
        with urllib.request.urlopen(f"https://127.0.0.1:{self.internal}/internal/routes", timeout=30, context=context) as answer:
            return json.load(answer)

    def exposition(self) -> str:
        """All metrics, in Prometheus' text format."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=30) as answer:
            return str(answer.read().decode())


@contextlib.contextmanager
def gateway(settings: Mapping[str, str], folder: Path, url: str, segments: Sequence["Segment"]) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway's process that is ready at `url`; with it end the segments, and what all of them said is printed."""
    with (folder / "gateway.log").open("wb") as log:
        environment = {**os.environ, **tls(folder, "gateway"), **settings}
        process = subprocess.Popen([sys.executable, "-m", "splitinference_gateway"], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: urllib.request.urlopen(f"{url}/readyz", timeout=1).status == 200)
        yield process
    finally:
        process.terminate()
        for segment in segments:
            segment.kill()
        process.wait(timeout=90)
        for file in sorted(folder.glob("*.log")):
            sys.stdout.write(f"--- {file.name}\n{file.read_text(errors='replace')[-4000:]}\n")


@dataclass
class Segment:
    """One segment's server. Its name and ports (HTTP, wire, metrics) stay when it is started again."""

    prefix: str
    start: int
    end: int
    ports: list[int]
    addresses: dict[str, str]
    log: Path
    model_path: str = field(default_factory=lambda: os.environ["SI_TEST_MODEL_PATH"])
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.start}-{self.end}"

    @property
    def hop(self) -> dict[str, str]:
        return {"segment": self.name, "model": f"seg-0123abcd-{self.start}-{self.end}"}

    def serve(self) -> None:
        http, wire, metrics = map(str, self.ports)
        settings = {
            "SI_SEGMENT": self.name,
            "SI_MODEL_NAME": self.hop["model"],
            "SI_MODEL_PATH": self.model_path,
            "SI_LAYERS": f"{self.start}:{self.end}",
            "SI_DTYPE": "float32",
            "SI_PEER_PREFIX": self.prefix,
            "SI_PEER_ADDRESSES": json.dumps(self.addresses),
            "SI_HTTP_PORT": http,
            "SI_WIRE_PORT": wire,
            "SI_GRPC_PORT": str(free_ports(1)[0]),
            "SI_METRICS_PORT": metrics,
            **tls(self.log.parent, "segment"),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["segment-serve"], env={**os.environ, **settings}, stdout=log, stderr=log)

    def ready(self) -> bool:
        """A token runs through its layers."""
        environment = {**os.environ, "SI_HTTP_PORT": str(self.ports[0]), "SI_MODEL_NAME": self.hop["model"]}
        return subprocess.run(["segment-probe", "5"], env=environment, capture_output=True, check=False).returncode == 0

    def measured(self, name: str) -> float:
        """A gauge or counter of its own, summed over labels; 0 when it is not there."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[2]}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"splitinference_segment_{name}{{"))

    def signal(self, number: int) -> None:
        """To the server and all its children."""
        assert self.process is not None
        for process in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """As on a lost node: all at once, without a word."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()


def wait_for(true: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if true():
                return
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)
