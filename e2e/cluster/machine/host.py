"""What the private engine needs of the machine that no namespace holds: a bridge, three firewall rules, forwarding, cgroups.

The engine itself is told to leave the firewall alone: at its start it would empty chains that another engine on the
same machine works with. So the rules are ours, few, marked, and taken away by their mark.
"""

import json
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.command import CommandError, run

FORWARDING = "net/ipv4/ip_forward"
# five kubelets and containerds need more inotify instances than the 128 that many machines allow: kubelets end without them
LIMITS = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 524288}
SLICE = "kernel/sched_cfs_bandwidth_slice_us"
SLICE_MICROSECONDS = 1000
"""In parts of this size the kernel hands a CPU quota to a processor. With its default, 5 ms, a step of 11 ms on half a core took 15 ms
instead of 22: what is handed out counts only afterwards."""
_SYSCTL = Path("/proc/sys")
_CGROUPS = Path("/sys/fs/cgroup")
WEIGHT = 64
"""Of all our containers together, as so many ordinary processes. Otherwise the cluster weighs as much as one process outside, and
nodes do not get the cores that they show as soon as anything else runs on the machine. Quotas keep workers from taking more."""


@dataclass(frozen=True)
class Traces:
    """What is done to the machine, and how its settings were before; written down before anything is done."""

    bridge: str
    cgroup: str
    sysctls: dict[str, str]

    @staticmethod
    def record(path: Path, *, bridge: str, cgroup: str) -> "Traces":
        """Write them down, unless earlier ones still wait to be removed: those know how it was before."""
        if not path.exists():
            part = path.with_suffix(".part")
            part.write_text(
                json.dumps(asdict(Traces(bridge, cgroup, {name: read(_SYSCTL / name) for name in (FORWARDING, SLICE, *LIMITS)})))
            )
            part.rename(path)
        return Traces.load(path)

    @staticmethod
    def load(path: Path) -> "Traces":
        return Traces(**json.loads(path.read_text()))

    def open_firewall(self, subnet: str) -> None:
        """Let the bridge's containers reach the world, and answers come back."""
        for table, rule in wanted(self.bridge, subnet):
            run(["iptables", "-w", "-t", table, "-I", *rule])

    def remove(self) -> None:
        """The rules, the bridge, the cgroups; and the settings as they were, forwarding only if no other bridge needs it now."""
        for table, rule in marked(self.bridge):
            _quietly(["iptables", "-w", "-t", table, "-D", *rule])
        if self.bridge in links():
            _quietly(["ip", "link", "delete", self.bridge])
        for name, value in self.sysctls.items():
            if value and read(_SYSCTL / name) != value and not (name == FORWARDING and other_bridges()):
                (_SYSCTL / name).write_text(value)
        remove_cgroups(self.cgroup)


def weigh(name: str, root: Path = _CGROUPS) -> bool:
    """Make the cgroup and give it WEIGHT; whether this machine lets us. What it holds shares that among itself as before."""
    with suppress(OSError):  # version 2 without a delegated controller
        (root / "cgroup.subtree_control").write_text("+cpu")
    for folder, file, ordinary in ((root / "cpu" / name, "cpu.shares", 1024), (root / name, "cpu.weight", 100)):
        try:
            if folder.parent.joinpath("cgroup.procs").exists():
                folder.mkdir(exist_ok=True)
                if (folder / file).exists():
                    (folder / file).write_text(str(ordinary * WEIGHT))
                    return True
        except OSError:
            continue
    return False


def fine_quotas() -> None:
    """Make CPU quotas exact for short steps, where the kernel lets us."""
    with suppress(OSError):
        if (now := read(_SYSCTL / SLICE)) and int(now) > SLICE_MICROSECONDS:
            (_SYSCTL / SLICE).write_text(str(SLICE_MICROSECONDS))


def raise_limits() -> None:
    """Raise what a cluster of several nodes on one machine needs more of; nothing is lowered."""
    for name, least in LIMITS.items():
        if (now := read(_SYSCTL / name)) and int(now) < least:
            (_SYSCTL / name).write_text(str(least))


def wanted(bridge: str, subnet: str) -> list[tuple[str, list[str]]]:
    """Table and rule of what our bridge needs, each marked with the bridge's name."""
    mark = ["-m", "comment", "--comment", bridge]
    return [
        ("nat", ["POSTROUTING", "-s", subnet, "!", "-o", bridge, *mark, "-j", "MASQUERADE"]),
        ("filter", ["FORWARD", "-i", bridge, *mark, "-j", "ACCEPT"]),
        ("filter", ["FORWARD", "-o", bridge, *mark, "-j", "ACCEPT"]),
    ]


def marked(bridge: str) -> list[tuple[str, list[str]]]:
    """Table and rule of all that carries our mark now."""
    return [(table, rule) for table in ("nat", "filter") for rule in with_mark(firewall(table), bridge)]


def with_mark(lines: tuple[str, ...], bridge: str) -> list[list[str]]:
    """Of `iptables -S`'s lines the rules with our mark, as words after -A."""
    words = [[word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)] for line in lines if line.startswith("-A ")]
    return [rule[1:] for rule in words if "--comment" in rule and rule[rule.index("--comment") + 1] == bridge]


def links() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in Path("/sys/class/net").iterdir() if path.is_symlink()))


def other_bridges() -> list[str]:
    """Bridges of others: they need forwarding."""
    return [name for name in links() if Path(f"/sys/class/net/{name}/bridge").exists()]


def firewall(table: str) -> tuple[str, ...]:
    """Policies, chains and rules of a table as `iptables -S` prints them; nothing where the table cannot be read."""
    try:
        return tuple(run(["iptables", "-w", "-t", table, "-S"]).splitlines())
    except (CommandError, OSError):
        return ()


def remove_cgroups(name: str) -> None:
    """Remove the cgroup folders called `name` in every hierarchy, deepest first. They are empty once all processes ended."""
    root = _CGROUPS
    tops = [path for path in (root / name, *(child / name for child in _folders(root))) if path.is_dir()]

    def none_left() -> bool:
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                _remove_folder(folder)
        return not any(top.exists() for top in tops)

    wait(none_left, 3)


def wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true in time."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def read(path: Path) -> str:
    """The file's text without its end; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _remove_folder(folder: str) -> None:
    try:
        os.rmdir(folder)
    except OSError:
        return


def _folders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []


def _quietly(command: list[str]) -> None:
    try:
        run(command)
    except (CommandError, OSError):
        return
