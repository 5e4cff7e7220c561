"""What processes hold: memory and its slope, file descriptors, regions of shared memory. Linux's /proc alone."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SHM = Path("/dev/shm")
MIB = 1 << 20
GROWTH_SHARE = 0.03  # of what a process held on average: more growth than this and the fixed part below is a leak
GROWTH_BYTES = 16 * MIB


@dataclass(frozen=True)
class Sample:
    """Memory at one moment."""

    seconds: float
    memory_bytes: float


@dataclass
class Series:
    """One process family's memory over time; `settled_s`: earlier samples are of the warm-up."""

    name: str
    settled_s: float
    samples: list[Sample] = field(default_factory=list)

    def add(self, seconds: float, memory_bytes: float) -> None:
        """Keep it, unless it is of the warm-up."""
        if seconds >= self.settled_s:
            self.samples.append(Sample(seconds, memory_bytes))

    @property
    def slope(self) -> float:
        """Bytes per second."""
        return slope(self.samples)

    def leak(self) -> str | None:
        """A sentence when the memory is not flat: growth over the observed time beyond the stated share and bytes."""
        if len(self.samples) < 3:
            return f"{self.name}: only {len(self.samples)} samples of memory"
        seconds = self.samples[-1].seconds - self.samples[0].seconds
        mean = sum(sample.memory_bytes for sample in self.samples) / len(self.samples)
        growth, allowed = self.slope * seconds, GROWTH_SHARE * mean + GROWTH_BYTES
        if growth <= allowed:
            return None
        return f"{self.name}: memory grew by {growth / MIB:.1f} MiB in {seconds:.0f} s, {allowed / MIB:.1f} are allowed"


def slope(samples: Sequence[Sample]) -> float:
    """Least squares: bytes per second; 0 for fewer than two moments."""
    if len(samples) < 2:
        return 0.0
    middle_s = sum(s.seconds for s in samples) / len(samples)
    middle = sum(s.memory_bytes for s in samples) / len(samples)
    spread = sum((s.seconds - middle_s) ** 2 for s in samples)
    return sum((s.seconds - middle_s) * (s.memory_bytes - middle) for s in samples) / spread if spread else 0.0


def memory(processes: Iterable[int]) -> int:
    """Private memory (RssAnon) of these processes together, bytes; those that are gone count nothing."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{process}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    total += int(line.split()[1]) << 10
    return total


def descriptors(processes: Iterable[int]) -> int:
    """Open file descriptors of these processes together."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError):
            total += len(os.listdir(f"/proc/{process}/fd"))
    return total


def regions(prefix: str) -> list[str]:
    """Shared-memory regions whose names begin so."""
    return sorted(file.name for file in SHM.iterdir() if file.name.startswith(prefix))
