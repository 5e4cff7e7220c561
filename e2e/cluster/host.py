"""What an engine does to the machine that no namespace holds: interfaces, firewall rules, forwarding, cgroups.

A Baseline is written before the private engine starts; `restore` takes away what came since and is ours. Rules and
chains of another engine on the same machine are left alone.
"""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from e2e.cluster.command import CommandFailed, run

TABLES = ("filter", "nat", "mangle", "raw")
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True)
class Baseline:
    """Links, firewall and forwarding as they were."""

    links: tuple[str, ...]
    rules: dict[str, tuple[str, ...]]
    forwarding: str

    @staticmethod
    def now() -> "Baseline":
        return Baseline(links(), {table: firewall(table) for table in TABLES}, _read(FORWARDING))

    @staticmethod
    def record(path: Path) -> None:
        """Write the present state, unless an earlier one waits to be restored: that one is nearer to the truth."""
        if not path.exists():
            path.write_text(json.dumps(asdict(Baseline.now())))

    @staticmethod
    def load(path: Path) -> "Baseline":
        data = json.loads(path.read_text())
        return Baseline(tuple(data["links"]), {table: tuple(lines) for table, lines in data["rules"].items()}, data["forwarding"])

    def restore(self, *, bridges: tuple[str, ...], cgroup: str) -> None:
        """Remove `bridges`, veths that hang on nothing, rules since then, empty cgroups called `cgroup`, and our forwarding."""
        for link in links():
            if link in bridges:
                _quietly(["ip", "link", "delete", link])
        shared = False
        for table in TABLES:
            now = firewall(table)
            others = foreign(self.rules.get(table, ()), now, bridges)
            shared = shared or others
            for words in undo(self.rules.get(table, ()), now, bridges=bridges, keep_chains=others):
                _quietly(["iptables", "-w", "-t", table, *words])
        if not shared and self.forwarding and _read(FORWARDING) != self.forwarding:
            FORWARDING.write_text(self.forwarding)
        remove_cgroups(cgroup)


def links() -> tuple[str, ...]:
    return tuple(sorted(path.name for path in Path("/sys/class/net").iterdir() if path.is_symlink()))


def firewall(table: str) -> tuple[str, ...]:
    """Policies, chains and rules of a table as `iptables -S` prints them; nothing where the table cannot be read."""
    try:
        return tuple(run(["iptables", "-w", "-t", table, "-S"]).splitlines())
    except (CommandFailed, OSError):
        return ()


def undo(before: tuple[str, ...], now: tuple[str, ...], *, bridges: tuple[str, ...], keep_chains: bool) -> list[list[str]]:
    """iptables words that take `now` back to `before`: rules first, then emptied chains, then policies.

    With `keep_chains` (another engine uses the same chains by now) only rules that name one of our bridges go.
    """
    new = [line for line in now if line not in before]
    ours = re.compile("|".join(rf"\s{re.escape(bridge)}(\s|$)" for bridge in bridges))
    words: list[list[str]] = []
    for line in new:
        if line.startswith("-A ") and (not keep_chains or ours.search(line)):
            words.append(["-D", *_split(line)[1:]])
    if keep_chains:
        return words
    words += [["-X", line.split()[1]] for line in new if line.startswith("-N ")]
    old_policies = dict(line.split()[1:3] for line in before if line.startswith("-P "))
    for line in new:
        if line.startswith("-P "):
            chain = line.split()[1]
            words.append(["-P", chain, old_policies.get(chain, "ACCEPT")])
    return words


def _split(rule: str) -> list[str]:
    """A rule's words; `iptables -S` quotes comments."""
    return [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', rule)]


def foreign(before: tuple[str, ...], now: tuple[str, ...], bridges: tuple[str, ...]) -> bool:
    """Whether someone else has added rules since: rules that name an interface which is not ours."""
    named = (match[1] for line in now if line not in before for match in re.finditer(r"\s-[io] (\S+)", line))
    return any(interface not in bridges for interface in named)


def remove_cgroups(name: str) -> None:
    """Remove the cgroup folders called `name` in every hierarchy, deepest first. They are empty once all processes ended."""
    root = Path("/sys/fs/cgroup")
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


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _quietly(command: list[str]) -> None:
    try:
        run(command)
    except (CommandFailed, OSError):
        return
