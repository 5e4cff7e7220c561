"""Two real hosts for a test: network namespaces, joined by a cable whose ends can be shaped. Needs root and `ip`."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache

ADDRESSES = {"a": "10.214.7.1", "b": "10.214.7.2"}


@cache
def missing() -> str:
    """Why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "needs root"
    if absent := [program for program in ("ip", "tc", "bash") if shutil.which(program) is None]:
        return f"needs {' and '.join(absent)}"
    name = f"si-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return f"no network namespace can be made: {made.stderr.strip()}" if made.returncode else ""


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=20)


@dataclass(frozen=True)
class Hosts:
    """`a` and `b`, joined."""

    names: dict[str, str]

    def limit(self, host: str, mbit: float | None) -> None:
        """What leaves `host` is shaped; None lifts it."""
        device = ["dev", "eth0", "root"]
        subprocess.run(["ip", "netns", "exec", self.names[host], "tc", "qdisc", "del", *device], capture_output=True, check=False)
        if mbit is not None:
            shape = ["rate", f"{mbit:g}mbit", "burst", "16kb", "latency", "400ms"]
            _run("ip", "netns", "exec", self.names[host], "tc", "qdisc", "add", *device, "tbf", *shape)

    @contextmanager
    def probe(self, host: str, **options: object) -> Iterator["Probe"]:
        """A probe's process on `host`, looking at the other."""
        (peer,) = [address for name, address in ADDRESSES.items() if name != host]
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        command = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "splitinference.probe"]
        command += ["--node", f"node-{host}", "--peers", peer, "--host", ADDRESSES[host], "--interval", "0.5", *words]
        with subprocess.Popen(command) as process:
            probe = Probe(self.names[host], ADDRESSES[host], process)
            try:
                probe.wait_until(bool)
                yield probe
            finally:
                process.terminate()
                code = process.wait(timeout=10)
            assert code == 0


@dataclass(frozen=True)
class Probe:
    """A probe that runs."""

    namespace: str
    address: str
    process: "subprocess.Popen[bytes]"

    def metrics(self) -> dict[str, float]:
        """What it exports now; nothing while it does not answer."""
        reading = f"exec 3<>/dev/tcp/{self.address}/8082 && printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
        words = ["ip", "netns", "exec", self.namespace, "bash", "-c", reading]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)
        lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith("splitinference_")]
        return {name: float(value) for name, value in lines}

    def resident_kib(self) -> int:
        """Memory of the process."""
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as file:
            (kib,) = [int(line.split()[1]) for line in file if line.startswith("VmRSS")]
        return kib

    def wait(self, name: str, seconds: float = 30) -> float:
        """The value of a series, once it is there."""
        return self.wait_until(lambda found: name in found, seconds)[name]

    def wait_until(self, holds: Callable[[dict[str, float]], bool], seconds: float = 30) -> dict[str, float]:
        """The metrics once `holds(metrics)`."""
        until = time.monotonic() + seconds
        while not holds(found := self.metrics()):
            assert time.monotonic() < until, found
            time.sleep(0.2)
        return found


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Made, and removed whatever happens."""
    names = {host: f"si-{host}-{os.getpid()}" for host in ADDRESSES}
    with ExitStack() as stack:
        for name in names.values():
            _run("ip", "netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
        ends = ["name", "eth0", "netns", names["b"]]
        _run("ip", "-n", names["a"], "link", "add", "eth0", "type", "veth", "peer", *ends)
        for host, name in names.items():
            _run("ip", "-n", name, "address", "add", f"{ADDRESSES[host]}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
        yield Hosts(names)
