"""Other systems beside the segments in `bench serve --peers`: llama.cpp's server unsplit and over RPC servers, and any server that runs.

llama.cpp's programs run in containers of the segment image with llama.cpp, from a folder of this machine (`--llama-bin`). All that serve
a GGUF file serve the same one, encoded once by libllama's own function.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from splitinference.cli.bench.serving.containers import CONTEXT_TOKENS, Bench, Chain, MeasurementError
from splitinference.cli.bench.serving.figures import Round, Strict, speed_ratio, wait_ratio

SERVER = "llama-server"
RPC_SERVERS = ("ggml-rpc-server", "rpc-server")
"""Names of the RPC server's program: newer and older."""
UNSPLIT = "llama.cpp"
FTYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q6_K": 18, "Q5_K_M": 17, "Q4_K_M": 15, "Q4_0": 2}
"""Encodings by name, with their number in llama.h (`llama_ftype`)."""
_GGUF = "model.gguf"
_ENCODE = """\
import sys
from splitinference_segment.llamacpp.library import library
ftype, threads = map(int, sys.argv[1:])
made = library().si_quantize(b"/source.gguf", b"/out/model.gguf", ftype, threads)
sys.exit(library().si_problem().decode() or "libllama does not encode this file" if made else 0)
"""


@dataclass(frozen=True)
class Programs:
    """llama.cpp's programs: the folder that has them with their libraries, and the name of the RPC server, if it is there."""

    folder: Path
    rpc: str | None

    @classmethod
    def find(cls, given: Path | None) -> "Programs | str":
        """In the folder that was given, else where the path has the server; or why there are none."""
        if given is None and (found := shutil.which(SERVER)) is not None:
            given = Path(found).resolve().parent
        if given is None:
            return (
                f"no {SERVER} on the path: build the target llama-peers of images/segment/Dockerfile.llamacpp, and name it with --llama-bin"
            )
        if not os.access(given / SERVER, os.X_OK):
            return f"{given} has no program {SERVER}"
        return cls(given.resolve(), next((name for name in RPC_SERVERS if os.access(given / name, os.X_OK)), None))


@dataclass(frozen=True)
class Peers:
    """What was found: llama.cpp's programs, servers that run already (URL by name), and what is missing with the reason.

    `gguf`: the file that segments and llama.cpp serve, in this encoding; None: neither is in this run.
    """

    programs: Programs | None = None
    servers: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    gguf: Path | None = None
    encoding: str | None = None


def find(llama_bin: Path | None, servers: Sequence[str], gguf: Path, encoding: str) -> Peers:
    """Look for all.

    Raises:
        MeasurementError: `servers` has an entry that is no NAME=URL.
    """
    named: dict[str, str] = {}
    for given in servers:
        name, _, url = given.partition("=")
        if not name or not url.startswith("http://"):
            raise MeasurementError(f"--server {given!r:.200}: expected NAME=http://HOST:PORT of a server with /v1/completions")
        named[name] = url
    programs = Programs.find(llama_bin)
    missing = others(named, shutil.which, importlib.util.find_spec)
    if isinstance(programs, str):
        return Peers(None, named, {UNSPLIT: programs, "llama.cpp RPC": programs, **missing}, gguf, encoding)
    if programs.rpc is None:
        missing = {"llama.cpp RPC": f"{programs.folder} has none of {', '.join(RPC_SERVERS)}: build with -DGGML_RPC=ON", **missing}
    return Peers(programs, named, missing, gguf, encoding)


def others(named: dict[str, str], which: Callable[[str], str | None], spec: Callable[[str], Any]) -> dict[str, str]:
    """vLLM, exo and Petals, unless `--server` names them: why they are not in this run."""
    ways = {
        "vLLM": ("vllm", "PyPI's wheels need CUDA, or are for other processors' drivers: CPUs need a build from source"),
        "exo": ("exo", "it is not on PyPI: the package of that name there is another project"),
        "Petals": ("petals", "its last release needs transformers before 4.35 and pydantic before 2, which run on no Python of our images"),
    }
    found: dict[str, str] = {}
    for name, (program, why) in ways.items():
        if name.lower() in {each.lower() for each in named}:
            continue
        installed = which(program) is not None or spec(program) is not None
        start = f"it is installed: start it with the model's name `bench`, and name it with --server {name}=http://HOST:PORT"
        found[name] = start if installed else f"not installed; {why}. One that runs elsewhere: --server {name}=http://HOST:PORT"
    return found


def encode(bench: Bench, source: Path, encoding: str, threads: int) -> Path:
    """The folder with the file in this encoding, made by the llama.cpp image.

    Raises:
        MeasurementError: libllama does not encode it, in its words.
    """
    folder = bench.folder("gguf")
    mounts = ["-v", f"{source.resolve()}:/source.gguf:ro", "-v", f"{folder}:/out", "--user", f"{os.getuid()}:{os.getgid()}"]
    words = ["run", "--rm", "--network", "none", *mounts, "--entrypoint", "python", bench.options.llamacpp_image]
    bench.docker.run(*words, "-c", _ENCODE, str(FTYPES[encoding]), str(threads))
    (folder / _GGUF).chmod(0o644)
    return folder


def start_server(bench: Bench, programs: Programs, gguf: Path, *, name: str, threads: int, rpc: int = 0) -> Chain:
    """Start llama.cpp's server on the file in `gguf`, not ready yet. `rpc`: over so many RPC servers of as many threads each, which hold
    all layers. Nothing is reused of earlier prompts."""
    clients = max(8, bench.options.clients)
    split: list[str] = []
    if rpc:
        ports = [bench.port() for _ in range(rpc)]
        for number, port in enumerate(ports):
            own = ["-H", "127.0.0.1", "-p", str(port), "-t", str(threads)]
            _start(bench, programs, f"{name}-server-{number}", str(programs.rpc), own)
        devices = ",".join(f"RPC{number}" for number in range(rpc))
        split = ["--rpc", ",".join(f"127.0.0.1:{port}" for port in ports), "-dev", devices, "-ngl", "999", "-fit", "off"]
    port = bench.port()
    own = ["-m", f"/gguf/{_GGUF}", "--host", "127.0.0.1", "--port", str(port), "-t", str(threads), "-tb", str(threads)]
    own += ["-np", str(clients), "-c", str(clients * CONTEXT_TOKENS), "--no-cache-prompt", "-cram", "0"]
    _start(bench, programs, name, SERVER, [*own, *split], "-v", f"{gguf}:/gguf:ro")
    return Chain(name, (), (), port)


def _start(bench: Bench, programs: Programs, name: str, program: str, words: Sequence[str], *options: str) -> None:
    mounts = ("-v", f"{programs.folder}:/llama:ro", *options, "--entrypoint", f"/llama/{program}")
    bench.container(name, bench.options.llamacpp_image, {"LD_LIBRARY_PATH": "/llama"}, *mounts, words=words)


class PeerRatios(Strict):
    """Segments beside llama.cpp on the same file: medians over rounds, each ratio within one round. Null: not measured in this run."""

    three_segments_by_unsplit: float | None = Field(description="tokens/s with one client; at least 0.95 is wanted")
    three_segments_by_rpc: float | None = Field(description="the same by llama.cpp RPC over three servers; at least 2 is wanted")
    three_segments_by_server_several_clients: float | None = Field(
        description="tokens/s with several clients, by llama.cpp's server with a slot for each and as many threads; at least 1 is wanted"
    )
    first_token_by_unsplit: float | None = Field(
        description="time to first token of the long prompt, three segments by unsplit llama.cpp; at most 1.1 is wanted"
    )
    first_token_by_unsplit_all_threads: float | None = Field(description="the same, by llama.cpp with as many threads as three segments")
    torch_one_segment_by_unsplit: float | None = Field(
        description="tokens/s with one client, one segment of the torch engine; at least 0.9 is wanted where both have the same weights"
    )


def ratios(taken: dict[tuple[str, str], list[Round]], all_threads: str) -> PeerRatios:
    """Of rounds by setup and load. `all_threads`: the setup of llama.cpp's server with as many threads as three segments have."""

    def speed(name: str, other: str, load: str) -> float | None:
        both = taken.get((name, load)), taken.get((other, load))
        return speed_ratio(both[0], both[1]) if both[0] and both[1] else None

    def wait(name: str, other: str) -> float | None:
        both = taken.get((name, "long")), taken.get((other, "long"))
        return wait_ratio(both[0], both[1]) if both[0] and both[1] else None

    three = "llamacpp-segments-3"
    return PeerRatios(
        three_segments_by_unsplit=speed(three, UNSPLIT, "one"),
        three_segments_by_rpc=speed(three, rpc_name(3), "one"),
        three_segments_by_server_several_clients=speed(three, all_threads, "several"),
        first_token_by_unsplit=wait(three, UNSPLIT),
        first_token_by_unsplit_all_threads=wait(three, all_threads),
        torch_one_segment_by_unsplit=speed("segments-1", UNSPLIT, "one"),
    )


def rpc_name(servers: int) -> str:
    """The setup of llama.cpp over so many RPC servers."""
    return f"{UNSPLIT}-rpc-{servers}"
