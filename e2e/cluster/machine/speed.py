"""What a worker of so many cores computes on this machine: the speed labels of the nodes rest on it, whatever the machine.

Measured in the segment image as the product measures nodes, and under the worker's own CPU quota. A node with a quarter of a core is not a
quarter as quick as one with a whole core: it sleeps three quarters of each period, and finds its caches with what others put there. Reading
weights in a stream loses a tenth by that, and the small operations of a layer take up to twice their processor time.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.faults import cpu_quota
from e2e.cluster.machine.engine import Engine

COMPUTE = "splitinference.dev/compute-gflops"
BANDWIDTH = "splitinference.dev/memory-bandwidth-gbps"
LAUNCH = "splitinference.dev/layer-launch-ms"
PROGRAM = Path(__file__).parent / "measure_core.py"
_READY_SECONDS = 900.0
"""Of a machine on which a program's imports wait for the processor."""


@dataclass(frozen=True)
class Speed:
    """Of a worker: GFLOP/s of products, GB/s of weights that are read in decode steps, and ms that each layer takes besides."""

    gflops: float
    gbps: float
    launch_ms: float

    def labels(self) -> dict[str, str]:
        """A worker's labels."""
        return {COMPUTE: f"{self.gflops:.1f}", BANDWIDTH: f"{self.gbps:.2f}", LAUNCH: f"{self.launch_ms:.3f}"}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name and abilities of this machine's processor, as a short hash behind the name."""
    lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines()[::-1] if ":" in line)
    found = {key.strip(): value.strip() for key, value in lines.items()}
    name, flags = (found.get(key, "unknown") for key in ("model name", "flags"))
    return f"{name} {hashlib.sha256(flags.encode()).hexdigest()[:8]}"


Ask = Callable[[float], str]
"""Measures with so many cores; what PROGRAM answers."""


def of_this_machine(
    folder: Path, image: str, cores: Sequence[float], measuring: Callable[[], AbstractContextManager[Ask]], *, name: str | None = None
) -> Mapping[float, Speed]:
    """Speeds by cores: from `folder`, where this processor was measured with this image before; else `measuring` measures what lacks.

    More cores than one are as many times as quick as one, but a layer's launches are not."""
    kept, key = folder / "speed.json", f"{name or processor()} {image}"
    known: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    lacking = sorted({min(1.0, each) for each in cores if f"{key} {min(1.0, each):g}" not in known})
    if lacking:
        with measuring() as ask:
            known |= {f"{key} {each:g}": asdict(read(ask(each))) for each in lacking}
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known, indent=1))
    found = {each: (Speed(**known[f"{key} {min(1.0, each):g}"]), max(1.0, each)) for each in cores}
    return {each: Speed(speed.gflops * times, speed.gbps * times, speed.launch_ms) for each, (speed, times) in found.items()}


@contextmanager
def container(engine: Engine, image: str, name: str) -> Iterator[Ask]:
    """A container of the segment image that measures under the quota of a worker of so many cores."""
    options = ("--rm", "--network", "none", "--name", name, "--memory", "1g", "--entrypoint", "/opt/segment/bin/python")
    engine.docker("rm", "-f", name, check=False)
    engine.docker("run", "-d", *options, image, "-c", PROGRAM.read_text())

    def ask(cores: float) -> str:
        period, quota = cpu_quota(cores)
        engine.docker("update", "--cpu-period", str(period), "--cpu-quota", str(quota), name)
        script = f"rm -f /tmp/answer; echo {cores:g} > /tmp/new; mv /tmp/new /tmp/asked; until [ -f /tmp/answer ]; do sleep 0.3; done"
        return engine.docker("exec", name, "sh", "-c", f"{script}; cat /tmp/answer", timeout=_READY_SECONDS)

    try:
        engine.docker("exec", name, "sh", "-c", "until [ -f /tmp/ready ]; do sleep 0.3; done", timeout=_READY_SECONDS)
        yield ask
    finally:
        engine.docker("rm", "-f", name, check=False)


def read(printed: str) -> Speed:
    """What PROGRAM answered. Raises ValueError where a figure is none."""
    found = Speed(**json.loads(printed.strip().splitlines()[-1]))
    if not (0 < found.gflops < 1e6 and 0 < found.gbps < 1e5 and 0 <= found.launch_ms < 1e4):
        raise ValueError(f"no speed of a worker: {printed[-200:]}")
    return found
