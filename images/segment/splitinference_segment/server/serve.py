"""segment-serve: the image's entry point. Writes the Triton repository, starts tritonserver, passes signals on, cleans /dev/shm.

It ends with its server, and ends the server when the Python stub is gone: Triton would stay up and answer every request with an error,
and nobody would start it anew before a minute of failed probes.

Triton listens on the pod's own loopback alone, cannot be told to load a model, and keeps what could change or watch it behind a key that
is made at each start and given to nobody. Other pods reach the wire (see wire.py), which is in the stub, and the metrics, which are here.
"""

import contextlib
import os
import random
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from splitinference_protocol import log_lines
from splitinference_protocol.addresses import listen
from splitinference_segment import logs
from splitinference_segment.peers.identity import Identity, IdentityError
from splitinference_segment.server.metrics_proxy import Health, MetricsProxy
from splitinference_segment.settings import Settings, SettingsError

SHM = Path("/dev/shm")
SHM_BYTES = 16 << 20  # shared memory at the start, for each direction; it grows by itself
EXIT_SECONDS = 5
STUB = "triton_python_backend_stub"
STUB_START_SECONDS = 600  # Triton's own 30 are too few to import torch on a fraction of a busy core; the startup probe has the say
STUB_LOOK_MS = 500  # how often the stub is looked for until it is there
STUB_GRACE_SECONDS = 1.0  # a server that ends by itself when its stub does, for want of a model, says why before

LOOPBACK = "127.0.0.1"
RESTRICTED = "shared-memory,model-repository,statistics,trace,logging"
"""APIs of Triton that nobody here needs; `inference` and `health` are left, for the probe, with `metadata` and `model-config`."""

MODEL_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: 0
input [ {{ name: "META" data_type: TYPE_UINT8 dims: [ -1 ] }}, {{ name: "DATA" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
output [ {{ name: "META" data_type: TYPE_UINT8 dims: [ -1 ] }}, {{ name: "DATA" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters [ {{ key: "FORCE_CPU_ONLY_INPUT_TENSORS" value: {{ string_value: "yes" }} }} ]
"""
MODEL_CODE = """\
from splitinference_segment.server.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
"""


def write_repository(folder: Path, model_name: str) -> None:
    """Write the repository with the one model; its Python is a name imported from this package."""
    version = folder / model_name / "1"
    version.mkdir(parents=True)
    (folder / model_name / "config.pbtxt").write_text(MODEL_CONFIG.format(name=model_name))
    (version / "model.py").write_text(MODEL_CODE)


def region_prefix(settings: Settings) -> str:
    """Prefix of this server's regions in /dev/shm: what is left under it belongs to nobody once the server is gone."""
    return f"si_{settings.segment}_{settings.http_port}_"


def clean_shared_memory(prefix: str) -> int:
    """Remove regions that a killed server left behind; returns how many."""
    left = [file for file in SHM.iterdir() if file.name.startswith(prefix)]
    for file in left:
        file.unlink(missing_ok=True)
    return len(left)


def command(settings: Settings, repository: Path, metrics_port: int, key: str) -> list[str]:
    """The command line of tritonserver. `key`: what a request for a restricted API would have to carry."""
    return [
        "tritonserver",
        f"--model-repository={repository}",
        f"--backend-directory={settings.backends}",
        "--model-control-mode=none",
        "--exit-on-error=true",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--http-address={LOOPBACK}",
        f"--http-port={settings.http_port}",
        f"--http-restricted-api={RESTRICTED}:si-key={key}",
        f"--grpc-address={LOOPBACK}",
        f"--grpc-port={settings.grpc_port}",
        f"--grpc-restricted-protocol={RESTRICTED}:si-key={key}",
        f"--metrics-address={LOOPBACK}",
        f"--metrics-port={metrics_port}",
        "--allow-gpu-metrics=false",
        "--allow-sagemaker=false",
        "--allow-vertex-ai=false",
        f"--backend-config=python,shm-default-byte-size={SHM_BYTES}",
        f"--backend-config=python,stub-timeout-seconds={STUB_START_SECONDS}",
        f"--backend-config=python,shm-region-prefix-name={region_prefix(settings)}",
        "--disable-auto-complete-config",
    ]


def free_port() -> tuple[int, socket.socket]:
    """A port of the loopback that nobody uses just now, outside of those that the kernel gives to connections; and what keeps it.

    Triton comes to it seconds later. As long as the socket is open, no other segment-serve of this network namespace takes the port: it has
    a name in the namespace's own list of local sockets, where no file is left behind.
    """
    for port in random.sample(range(30_001, 32_000), 200):
        kept = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with socket.socket() as tried, contextlib.suppress(OSError):
            kept.bind(f"\0splitinference-port-{port}")
            tried.bind((LOOPBACK, port))
            return port, kept
        kept.close()
    raise OSError("no free port on the loopback")


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """The server's environment: as given, with the number of threads for OpenMP, and a C library that keeps freed memory, in two heaps.

    Otherwise each step would fetch its larger temporaries from the kernel anew, which costs more than computing them. And with a heap for
    each of up to sixteen threads, as is usual, what comes and goes on connections would be kept in all of them.

    Large pages, where the kernel leaves that to programs (`madvise`): a step reads every weight once, and with small pages it waits for
    translations of addresses, most of all in a virtual machine (docs/reference/data-plane-profile.md).
    """
    own = {
        "OMP_NUM_THREADS": str(settings.threads),
        "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
        "MALLOC_ARENA_MAX": "2",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }
    return {**own, **inherited}


def serve(settings: Settings) -> int:
    """Run until the server ends; its exit code. SIGTERM and SIGINT are passed on, and what it leaves is cleaned up."""
    prefix = region_prefix(settings)
    clean_shared_memory(prefix)
    try:
        listener = listen(settings.metrics_port)
    except OSError as problem:
        print(f"segment-serve: port {settings.metrics_port} for metrics: {problem.strerror}", file=sys.stderr)
        return 2
    source_port, kept = free_port()
    proxy = MetricsProxy(listener, source_port, Health(settings.http_port, settings.model_name))
    repository = Path(tempfile.mkdtemp(prefix="repository-"))
    try:
        write_repository(repository, settings.model_name)
        # A session of its own: the server's stub processes are in its group and can be ended with it.
        words = command(settings, repository, source_port, secrets.token_urlsafe(32))
        out = subprocess.PIPE if isinstance(sys.stderr, logs.JsonStream) else None
        server = subprocess.Popen(
            words, env=environment(settings, os.environ), start_new_session=True, stdout=out, stderr=subprocess.STDOUT if out else None
        )
        lines = logs.pumped(server.stdout, sys.stderr) if server.stdout is not None and isinstance(sys.stderr, logs.JsonStream) else None
        ended: list[int] = []

        def end(number: int, _frame: object) -> None:
            ended.append(number)
            _end(server, number)

        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, end)
        _wait_for_either(server.pid)
        if not ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(STUB_GRACE_SECONDS)
            if server.poll() is None and not ended:
                print(f"segment-serve: {STUB} is gone, so the server is ended", file=sys.stderr)
                server.kill()
        code = server.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # a stub that outlived a killed server
        if lines is not None:
            lines.join(EXIT_SECONDS)  # its last words
        return code if code >= 0 else 128 - code
    finally:
        kept.close()
        proxy.close()
        clean_shared_memory(prefix)
        shutil.rmtree(repository, ignore_errors=True)


def _wait_for_either(server: int) -> None:
    """Until the server or its stub has ended."""
    with contextlib.ExitStack() as opened:
        watch = select.poll()

        def register(pid: int) -> None:
            descriptor = os.pidfd_open(pid)
            opened.callback(os.close, descriptor)
            watch.register(descriptor, select.POLLIN)

        register(server)
        seen = False
        while not watch.poll(None if seen else STUB_LOOK_MS):
            if (stub := _stub_of(server)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    register(stub)
                    seen = True


def _stub_of(server: int) -> int | None:
    """The process of the stub: a child of the server. A grandchild, which runs the same program for a moment at the start, is not it."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
            if STUB.startswith(name) and int(fields.split()[1]) == server:
                return int(folder.name)
    return None


def _end(server: "subprocess.Popen[bytes]", number: int) -> None:
    if server.poll() is None:
        server.send_signal(number)


def main() -> int:
    """Read the settings and serve. Exit code 2 and one sentence when a setting is wrong."""
    try:
        if log_lines.chosen(os.environ) == "json":
            sys.stderr = logs.JsonStream(sys.stderr)
        settings = Settings.from_environment()
    except (SettingsError, ValueError) as wrong:
        print(f"segment-serve: {wrong}", file=sys.stderr)
        return 2
    if settings.tls_folder is None:
        print("segment-serve: SI_INSECURE=true: whoever reaches this segment may use it", file=sys.stderr)
    else:
        try:
            Identity(settings.tls_folder, settings.identity)
        except IdentityError as wrong:
            print(f"segment-serve: {wrong}", file=sys.stderr)
            return 2
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
