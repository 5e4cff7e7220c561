"""What a run of `bench serve` ran on: the processor and what it can do, the kernels that each engine chose, and the machine's load."""

import json
import os
import platform
import subprocess
from pathlib import Path

from pydantic import Field

from splitinference.cli.bench.serving.figures import Strict

_COUNTED = ("avx", "fma", "amx", "f16c", "sve", "asimd", "bf16", "i8mm")
"""Beginnings of the processor's flags that matrix products depend on."""
_KERNELS = """\
import glob, json, re
found = set()
for maps in glob.glob("/proc/[0-9]*/maps"):
    try:
        found |= set(re.findall(r"libggml-cpu-[a-z0-9_]+", open(maps).read()))
    except OSError:
        pass
print(json.dumps(sorted(found)))
"""
"""Run inside a container: which of ggml's CPU variants its processes have loaded."""
_TORCH = """\
import json, torch
config = "oneDNN" if torch.backends.mkldnn.is_available() else "no oneDNN"
print(json.dumps([f"torch {torch.__version__}", torch.backends.cpu.get_cpu_capability(), config]))
"""


class Machine(Strict):
    """The machine of a run."""

    processor: str
    flags: tuple[str, ...] = Field(description="of the processor, those that matrix products depend on")
    cores: int = Field(description="that the setups may use")
    memory_mib: int
    kernel: str = Field(description="of the operating system")
    load: tuple[float, ...] = Field(description="load average of one minute: before the first round, then after each one")

    @property
    def is_busy(self) -> bool:
        """Whether other work ran before the first round."""
        return bool(self.load) and self.load[0] > self.cores / 2


def machine(cpuinfo: str, meminfo: str, cores: int, load: tuple[float, ...]) -> Machine:
    """Of the texts of /proc/cpuinfo and /proc/meminfo."""
    values: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        values.setdefault(name.strip(), value.strip())
    flags = (values.get("flags") or values.get("Features") or "").split()
    total = next((int(line.split()[1]) for line in meminfo.splitlines() if line.startswith("MemTotal:")), 0)
    chosen = tuple(sorted(flag for flag in flags if flag.startswith(_COUNTED) or flag.endswith("bf16")))
    processor = values.get("model name") or platform.machine()
    return Machine(processor=processor, flags=chosen, cores=cores, memory_mib=total // 1024, kernel=platform.release(), load=load)


def machine_here(cores: int, load: tuple[float, ...]) -> Machine:
    """This one."""
    return machine(Path("/proc/cpuinfo").read_text(), Path("/proc/meminfo").read_text(), cores, load)


def load_now() -> float:
    """Tasks that run or want to, on average of the last minute."""
    return round(os.getloadavg()[0], 2)


def kernels(client: str, container: str, *, torch: bool) -> tuple[str, ...]:
    """What computes in a container, as its own libraries say; nothing where they say nothing."""
    words = [client, "exec", container, "python3", "-c", _TORCH if torch else _KERNELS]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return tuple(json.loads(done.stdout)) if done.returncode == 0 and done.stdout else ()
