"""Containers for `bench serve`: the segment and gateway images as they are, sharing one network namespace that leads nowhere."""

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from splitinference.cli.bench.serving.identities import FOLDER, IDENTITY, Identities

PREFIX = "bench"
CONTEXT_TOKENS = 2048
TORCH, LLAMA_CPP = "torch", "llamacpp"
_READY_SECONDS = 300.0
_FIRST_PORT = 20000
_ASK_INSIDE = """\
import ssl, sys, urllib.request
port, folder = sys.argv[1:]
context = None
if folder:
    context = ssl.create_default_context(cafile=folder + "/ca.crt")
    context.check_hostname = False
    context.load_cert_chain(folder + "/tls.crt", folder + "/tls.key")
url = f"{'https' if folder else 'http'}://127.0.0.1:{port}/internal/routes"
print(urllib.request.urlopen(url, context=context, timeout=30).read().decode())
"""
"""What a gateway observed of its stages, asked as the operator asks: with a certificate of its role."""


class MeasurementError(Exception):
    """Why there is nothing to measure with, in one sentence that says what to do."""


@dataclass(frozen=True)
class Docker:
    """A Docker client whose engine answers."""

    client: str

    @classmethod
    def find(cls) -> "Docker":
        """The first client on the path, or in /usr/bin, that reaches an engine.

        Raises:
            MeasurementError: there is none.
        """
        folders = [*os.environ.get("PATH", "").split(":"), "/usr/bin"]
        for client in dict.fromkeys(f"{folder}/docker" for folder in folders if os.access(f"{folder}/docker", os.X_OK)):
            if subprocess.run([client, "version"], capture_output=True, check=False, timeout=30).returncode == 0:
                return cls(client)
        raise MeasurementError("bench serve runs the segment and gateway images in containers, and no Docker engine answers: start one.")

    def run(self, *words: str, stdin: str | None = None) -> str:
        """`docker WORDS…`, its output.

        Raises:
            MeasurementError: it failed; with what it said.
        """
        done = subprocess.run([self.client, *words], input=stdin, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MeasurementError(f"docker {words[0]} failed: {done.stderr.strip()[-600:]}")
        return done.stdout

    def needs(self, *images: str) -> None:
        """Raises:
        MeasurementError: an image is not there.
        """
        for image in images:
            if not self.run("images", "-q", image).strip():
                raise MeasurementError(f"the image {image} is not there: `make demo` builds it, or name another one.")


@dataclass(frozen=True)
class Options:
    """What all setups have in common."""

    model: Path
    segment_image: str
    gateway_image: str
    dtype: str
    threads: int
    weights: str
    cpus: str | None
    chunk_tokens: int
    clients: int
    insecure: bool = False  # without TLS between gateway and segments
    llamacpp_image: str = ""  # of segments with the engine llama.cpp


@dataclass(frozen=True)
class Chain:
    """A model in segments with a gateway of its own, or another server of it, without hops; ports are the shared namespace's.

    `url`: of a server that runs elsewhere, reached from this machine.
    """

    name: str
    hops: tuple[Mapping[str, str], ...]
    http_ports: tuple[int, ...]
    port: int
    internal_port: int = 0
    url: str = ""


@dataclass
class Bench:
    """All containers of one run; a context that removes them all, also when something fails."""

    docker: Docker
    options: Options
    identity: str = field(default_factory=lambda: f"splitinference-bench-{uuid.uuid4().hex[:8]}")
    _made: list[str] = field(default_factory=list)
    _ports: int = _FIRST_PORT
    _unsplit: "subprocess.Popen[str] | None" = None
    _folder: "tempfile.TemporaryDirectory[str]" = field(default_factory=lambda: tempfile.TemporaryDirectory(prefix="bench-serve-"))

    def __enter__(self) -> "Bench":
        """The first container holds the network namespace and is where the client runs."""
        self._made.append(self.identity)
        Path(self._folder.name).chmod(0o755)
        self._identities = Identities(Path(self._folder.name))
        _, mount = self._known("operator")  # to ask gateways what they observed
        options = ["--network", "none", "--entrypoint", "sleep", *mount, *self._pinned()]
        self.docker.run("run", "-d", "--rm", "--init", "--name", self.identity, *options, self.options.gateway_image, "86400")
        return self

    def __exit__(self, *_: object) -> None:
        """Remove all."""
        if self._unsplit is not None:
            self._unsplit.kill()
            self._unsplit.wait()
        subprocess.run([self.docker.client, "rm", "-f", "-v", *reversed(self._made)], capture_output=True, check=False)
        self._folder.cleanup()

    def client(self, **asked: Any) -> Any:
        """Run the client beside the servers."""
        script = resources.files("splitinference.cli.bench.serving").joinpath("load.py").read_text()
        return json.loads(self.docker.run("exec", "-i", self.identity, "python", "-", json.dumps(asked), stdin=script))

    def client_here(self, **asked: Any) -> Any:
        """Run it on this machine, for a server that runs elsewhere.

        Raises:
            MeasurementError: the server does not answer as it should; with what was said.
        """
        script = resources.files("splitinference.cli.bench.serving").joinpath("load.py").read_text()
        done = subprocess.run([sys.executable, "-", json.dumps(asked)], input=script, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MeasurementError(f"{asked.get('host')}:{asked.get('port')}: {done.stderr.strip()[-600:]}")
        return json.loads(done.stdout)

    def start_chain(
        self, cuts: Sequence[int], label: str = "", cores: Sequence[float] = (), *, round_trip_ms: float = 0.0, gguf: Path | None = None,
        **gateway: str,
    ) -> Chain:  # fmt: skip
        """Start one server per segment, and a gateway; not ready yet. `label` tells chains of as many segments apart; `cores`: each
        segment gets so many, without it as many as there are. `round_trip_ms`: what the way to each segment and back takes longer.
        `gguf`: a folder with the file that the engine llama.cpp serves; without it the engine is torch. `gateway`: further settings of the
        gateway by variable."""
        ranges = list(itertools.pairwise(cuts))
        chain = label or (f"{LLAMA_CPP}-{len(ranges)}" if gguf else str(len(ranges)))
        image, model = (self.options.llamacpp_image, gguf) if gguf else (self.options.segment_image, self.options.model)
        names = [f"{PREFIX}-{chain}-{start}-{end}" for start, end in ranges]
        ports = [self.port() for _ in range(4 * len(ranges) + 3)]
        wires = self._delayed([ports[4 * i] for i in range(len(ranges))], round_trip_ms) if round_trip_ms else ports[::4]
        peers = json.dumps({name: f"127.0.0.1:{wires[i]}" for i, name in enumerate(names)})
        hops = tuple({"segment": name, "model": f"seg-{'0' * 8}-{start}-{end}"} for name, (start, end) in zip(names, ranges, strict=True))
        for i, (hop, (start, end)) in enumerate(zip(hops, ranges, strict=True)):
            settings = {
                "SI_SEGMENT": hop["segment"],
                "SI_MODEL_NAME": hop["model"],
                "SI_LAYERS": f"{start}:{end}",
                "SI_DTYPE": self.options.dtype,
                "SI_THREADS": str(self.options.threads),
                "SI_WEIGHTS": self.options.weights,
                "SI_MAX_SEQUENCES": str(max(8, self.options.clients)),
                "SI_MAX_BATCH": str(max(8, self.options.clients)),
                "SI_PEER_PREFIX": f"{PREFIX}-{chain}-",
                "SI_WIRE_PORT": str(ports[4 * i]),
                "SI_HTTP_PORT": str(ports[4 * i + 1]),
                "SI_METRICS_PORT": str(ports[4 * i + 2]),
                "SI_GRPC_PORT": str(ports[4 * i + 3]),
                "SI_PEER_ADDRESSES": peers,
            }
            known, mount = self._known("segment")
            limit = ("--cpus", f"{cores[i]:g}") if cores else ()
            self.container(hop["segment"], image, settings | known, "--shm-size", "256m", *limit, *mount, model=model)
        route = json.dumps({"v": 1, "revision": "bench", "pipelines": [hops], "drainSeconds": 30})
        settings = {
            "SI_MODEL_ID": PREFIX,
            "SI_ROUTE_FILE": "/tmp/route.json",
            "SI_PEER_ADDRESSES": peers,
            "SI_PORT": str(ports[-1]),
            "SI_INTERNAL_PORT": str(ports[-2]),
            "SI_METRICS_PORT": str(ports[-3]),
            "SI_MAX_CONCURRENT_SEQUENCES": str(max(8, self.options.clients)),
            "SI_PREFILL_CHUNK_TOKENS": str(self.options.chunk_tokens),
            "SI_PREFIX_REUSE": "off",  # the same prompts come every round
            "SI_SPECULATION": "off",  # a step is a token, as in what it is compared with; `bench drafts` measures drafts
            "BENCH_ROUTE": route,
            **gateway,
        }
        write_then_serve = 'printf %s "$BENCH_ROUTE" > /tmp/route.json && exec python -m splitinference_gateway'
        words = ("-c", write_then_serve)
        known, mount = self._known("gateway")
        name = f"{PREFIX}-{chain}-gateway"
        self.container(name, self.options.gateway_image, settings | known, *mount, "--entrypoint", "sh", words=words)
        return Chain(
            label or f"{f'{LLAMA_CPP}-' if gguf else ''}segments-{len(ranges)}",
            hops,
            tuple(ports[1 : 4 * len(ranges) : 4]),
            ports[-1],
            ports[-2],
        )

    def _delayed(self, ports: Sequence[int], round_trip_ms: float) -> list[int]:
        """Ports that lead to these ones, and take so much longer there and back."""
        relays = [self.port() for _ in ports]
        script = resources.files("splitinference.cli.bench.serving").joinpath("delay.py").read_text()
        asked = json.dumps({"ports": list(zip(relays, ports, strict=True)), "seconds": round_trip_ms / 2000})
        self.docker.run("exec", "-d", self.identity, "python", "-c", script, asked)
        return relays

    def wait_server(self, chain: Chain) -> None:
        """Until a server of another system is well (`/health`).

        Raises:
            MeasurementError: as for chains.
        """
        well = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{chain.port}/health', timeout=2)"
        words = [self.docker.client, "exec", self.identity, "python", "-c", well]
        self._wait(self.name(chain.name), words, time.monotonic() + _READY_SECONDS)

    def wait_ready(self, chain: Chain) -> None:
        """Until every segment has run its own tiny inference.

        Raises:
            MeasurementError: a container ended, or it takes too long; with the end of its log.
        """
        deadline = time.monotonic() + _READY_SECONDS
        for hop in chain.hops:
            name = self.name(hop["segment"])
            self._wait(name, [self.docker.client, "exec", name, "segment-probe", "5"], deadline)

    def _wait(self, name: str, check: Sequence[str], deadline: float) -> None:
        while subprocess.run(check, capture_output=True, check=False).returncode:
            ended = self.docker.run("inspect", "-f", "{{.State.Running}}", name).strip() != "true"
            if ended or time.monotonic() > deadline:
                log = subprocess.run([self.docker.client, "logs", "--tail", "15", name], capture_output=True, text=True, check=False)
                raise MeasurementError(f"{name} {'ended' if ended else 'is not ready'}:\n{log.stdout}{log.stderr}")
            time.sleep(0.5)

    def unsplit(self, max_new_tokens: int, *, prompt: str = "", prompt_tokens: Sequence[int] = ()) -> dict[str, Any]:
        """What transformers' own `generate` gives in one process that stays.

        Raises:
            MeasurementError: the process ended; with what it said.
        """
        if self._unsplit is None:
            name = self.name("unsplit")
            self._made.append(name)
            mount = f"{self.options.model.resolve()}:/model:ro"
            words = ["run", "-i", "--rm", "--name", name, "--network", "none", *self._pinned(), "-v", mount, *self._threads()]
            words += ["--entrypoint", "segment-reference", self.options.segment_image, "--model", "/model", "--lines"]
            words += ["--dtype", self.options.dtype, "--threads", str(self.options.threads)]
            pipe = subprocess.PIPE
            self._unsplit = subprocess.Popen([self.docker.client, *words], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        asked = {"prompt": prompt, "prompt_tokens": list(prompt_tokens), "max_new_tokens": max_new_tokens}
        process = self._unsplit
        if process.stdin is None or process.stdout is None:
            raise MeasurementError("the unsplit model's process has no pipes")
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise MeasurementError("the unsplit model ended: is this model one that transformers can load, and is there memory for it?")
        found: dict[str, Any] = json.loads(line)
        return found

    def observed(self, chain: Chain) -> dict[str, Any]:
        """What the chain's gateway says of its stages."""
        folder = "" if self.options.insecure else FOLDER
        words = ("exec", "-i", self.identity, "python", "-", str(chain.internal_port), folder)
        return dict(json.loads(self.docker.run(*words, stdin=_ASK_INSIDE))["observed"])

    def container(
        self, name: str, image: str, settings: Mapping[str, str], *options: str, words: Sequence[str] = (), model: Path | None = None
    ) -> None:
        """Start one in the shared network namespace. `model`: the folder that it has at /model; without it the options' own."""
        full = self.name(name)
        self._made.append(full)
        told = {"SI_MODEL_PATH": "/model", "SI_MAX_CONTEXT_TOKENS": str(CONTEXT_TOKENS), **settings}
        environment = [word for key, value in told.items() for word in ("-e", f"{key}={value}")]
        mount = f"{(model or self.options.model).resolve()}:/model:ro"
        network = ["--network", f"container:{self.identity}", *self._pinned()]
        self.docker.run("run", "-d", "--name", full, *network, "-v", mount, *environment, *options, image, *words)

    def folder(self, name: str) -> Path:
        """A folder of this run's own, which containers may read. It goes with the run."""
        made = Path(self._folder.name) / name
        made.mkdir(mode=0o755, exist_ok=True)
        return made

    def name(self, part: str) -> str:
        """A container's name on the engine."""
        return f"{self.identity}-{part}"

    def port(self) -> int:
        """A port of the shared namespace that nobody else has."""
        self._ports += 1
        return self._ports

    def _known(self, role: str) -> tuple[dict[str, str], Sequence[str]]:
        """Settings and a mount, by which gateway and segments know each other."""
        if self.options.insecure:
            return {"SI_INSECURE": "true"}, ()
        return {"SI_TLS_FOLDER": FOLDER, "SI_IDENTITY": IDENTITY}, ("-v", f"{self._identities.folder(role)}:{FOLDER}:ro")

    def _pinned(self) -> list[str]:
        return ["--cpuset-cpus", self.options.cpus] if self.options.cpus else []

    def _threads(self) -> list[str]:
        return ["-e", f"OMP_NUM_THREADS={self.options.threads}"]
