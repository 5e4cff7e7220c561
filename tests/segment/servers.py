"""Real segment servers on free ports of this machine, started and ended by the tests."""

import contextlib
import itertools
import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from client import Client
from host import family, free_ports
from identities import IDENTITY, Authority

from splitinference_protocol.wire.operations import GATEWAY, SEGMENT
from splitinference_segment.peers.identity import Identity

PREFIX = "chat-"
DIGEST = "abcd1234"
READY_S = 300.0  # seconds; three servers start in 10 on two idle cores, and take long on busy ones


@dataclass
class Server:
    """One segment-serve process."""

    name: str
    model_name: str
    environment: dict[str, str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def port(self) -> int:
        """Of its wire."""
        return int(self.environment["SI_WIRE_PORT"])

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["segment-serve"], env={**os.environ, **self.environment}, stdout=log, stderr=log)

    def command(self, *arguments: str, timeout_s: float = 30.0) -> "subprocess.CompletedProcess[str]":
        """Run one of the image's commands with this server's settings."""
        return subprocess.run(
            arguments, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def wait_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.command("segment-probe", "5").returncode:
            assert self.process is not None
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{self.name} is not ready:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.3)

    def children(self, name: str) -> list[int]:
        """Process ids below this server whose command line contains `name`."""
        assert self.process is not None
        found: list[int] = []
        for pid in family(self.process.pid)[1:]:
            with contextlib.suppress(OSError):
                if name in (Path("/proc") / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                    found.append(pid)
        return found

    def shared_memory(self) -> list[str]:
        """Regions in /dev/shm that are this server's."""
        return [f.name for f in Path("/dev/shm").iterdir() if f.name.startswith(f"si_{self.name}_")]

    def stop(self) -> int:
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def kill(self) -> None:
        """End it with all that it started and leave nothing: for tests that are not about how it ends, which takes seconds by itself."""
        if self.process is None or self.process.poll() is not None:
            return
        for pid in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for region in self.shared_memory():
            (Path("/dev/shm") / region).unlink()


@dataclass
class Chain:
    """Segments that together are a model."""

    servers: list[Server]
    identity: Identity
    clients: list[Client] = field(default_factory=list)

    def client(self, start: int = 0) -> Client:
        """A client whose route begins at the server `start`."""
        client = Client([(s.name, s.model_name, s.port) for s in self.servers[start:]], self.identity)
        self.clients.append(client)
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.kill()


class Chains:
    """Makes chains of servers, and ends them all."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self.authority = Authority()
        self._tls = self.authority.write(logs / "segment-tls", SEGMENT)
        self.identity = Identity(self.authority.write(logs / "gateway-tls", GATEWAY), IDENTITY)
        self._chains: list[Chain] = []

    def start(self, folder: Path, cuts: Sequence[int], dtype: str = "float32", **settings: str) -> Chain:
        """Servers for layers [cuts[0], cuts[1]), [cuts[1], cuts[2]), …, ready to serve."""
        chain = self.describe(folder, cuts, dtype, **settings)
        for server in chain.servers:
            server.start()
        for server in chain.servers:
            server.wait_ready()
        return chain

    def describe(self, folder: Path, cuts: Sequence[int], dtype: str = "float32", **settings: str) -> Chain:
        """The same servers, with ports of their own, not started."""
        ranges = list(itertools.pairwise(cuts))
        ports = free_ports(4 * len(ranges))
        names = [f"{PREFIX}{start}-{end}-{secrets.token_hex(4)}" for start, end in ranges]
        addresses = {name: f"127.0.0.1:{ports[4 * i]}" for i, name in enumerate(names)}
        chain = Chain([], self.identity)
        self._chains.append(chain)
        for i, (start, end) in enumerate(ranges):
            environment = {
                "SI_SEGMENT": names[i],
                "SI_NODE": f"node-of-{names[i]}",
                "SI_MODEL_NAME": f"seg-{DIGEST}-{start}-{end}",
                "SI_MODEL_PATH": str(folder),
                "SI_LAYERS": f"{start}:{end}",
                "SI_DTYPE": dtype,
                "SI_MAX_CONTEXT_TOKENS": "256",
                "SI_MAX_SEQUENCES": "8",
                "SI_PEER_PREFIX": PREFIX,
                "SI_PEER_ADDRESSES": json.dumps(addresses),
                "SI_WIRE_PORT": str(ports[4 * i]),
                "SI_HTTP_PORT": str(ports[4 * i + 1]),
                "SI_METRICS_PORT": str(ports[4 * i + 2]),
                "SI_GRPC_PORT": str(ports[4 * i + 3]),
                "SI_TLS_FOLDER": str(self._tls),
                "SI_IDENTITY": IDENTITY,
                **settings,
            }
            server = Server(names[i], environment["SI_MODEL_NAME"], environment, self._logs / f"{names[i]}.log")
            chain.servers.append(server)
        return chain

    def close(self) -> None:
        for chain in self._chains:
            chain.close()
