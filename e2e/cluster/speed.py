"""How fast one core of this machine computes a decoder's layers: the speed labels of the nodes rest on it, whatever the machine.

Measured in the segment image, with the layers that serve. Time is the processor's: what others take of it does not count, but what they
take of its caches does.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.settings import WorkerSize

COMPUTE = "splitinference.dev/compute-gflops"
BANDWIDTH = "splitinference.dev/memory-bandwidth-gbps"
PROGRAM = Path(__file__).parent / "measure_core.py"


@dataclass(frozen=True)
class Speed:
    """Of one core: GFLOP/s over a prompt of 64 tokens, and GB/s of weights read in decode steps."""

    gflops: float
    gbps: float

    def labels(self, size: WorkerSize) -> dict[str, str]:
        """A worker's labels: as many cores as it has, each as fast as this."""
        return {COMPUTE: f"{size.cores * self.gflops:.1f}", BANDWIDTH: f"{size.cores * self.gbps:.2f}"}


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name and abilities of this machine's processor, as a short hash behind the name."""
    lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines()[::-1] if ":" in line)
    found = {key.strip(): value.strip() for key, value in lines.items()}
    name, flags = (found.get(key, "unknown") for key in ("model name", "flags"))
    return f"{name} {hashlib.sha256(flags.encode()).hexdigest()[:8]}"


def of_this_machine(folder: Path, image: str, measure: Callable[[], str], *, name: str | None = None) -> Speed:
    """From `folder`, where this processor was measured with this image before; else `measure` runs PROGRAM in it and gives its output."""
    kept, key = folder / "speed.json", f"{name or processor()} {image}"
    known: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.exists() else {}
    if key not in known:
        known[key] = asdict(read(measure()))
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(known, indent=1))
    return Speed(**known[key])


def read(printed: str) -> Speed:
    """What PROGRAM printed. Raises ValueError where a figure is none."""
    found = Speed(**json.loads(printed.strip().splitlines()[-1]))
    if not (0 < found.gflops < 1e6 and 0 < found.gbps < 1e5):
        raise ValueError(f"no speed of a core: {printed[-200:]}")
    return found
