"""The private engine, killed in the middle of its work, and what `down` finds to clean: everything, and nothing of others."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster import lifecycle
from e2e.cluster.machine import engine as engines
from e2e.cluster.machine import host
from e2e.cluster.machine.engine import NETWORK, Engine
from e2e.cluster.machine.leftovers import leftovers
from e2e.cluster.progress import Progress
from e2e.cluster.settings import Settings
from e2e.cluster.supplies import packages

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(os.geteuid() != 0, reason="a private engine needs root"),
]
PROGRAMS = ("dockerd", "jq", "ip", "iptables", "unshare")


@pytest.fixture
def settings() -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="si-") as folder:  # short: a socket's path has a limit
        made = Settings(name="leaves-nothing", cache=Path(folder) / "cache", engine="private")
        packages.install(packages.missing(PROGRAMS), made.logs / "apt.log")
        yield made
        lifecycle.down(made, Progress())


def of_the_machine(settings: Settings) -> dict[str, object]:
    """All that an engine changes outside its namespaces, without what other engines do meanwhile."""
    sysctls = {name: host.read(Path("/proc/sys") / name) for name in (host.SLICE, *host.LIMITS)}
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(settings.cache) in line]
    rules = {table: [rule for rule in host.firewall(table) if engines.bridge(settings) in rule] for table in ("filter", "nat")}
    chains = {table: [rule for rule in host.firewall(table) if rule.startswith("-N")] for table in ("filter", "nat")}
    return {"sysctls": sysctls, "mounts": mounts, "rules": rules, "chains": chains, "links": engines.bridge(settings) in host.links()}


def a_container(engine: Engine, folder: Path) -> None:
    """Run `sleep` of this machine in a container on the nodes' network."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    program = shutil.which("sleep") or "/bin/sleep"
    shutil.copy(program, root / "bin" / "sleep")
    for word in subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split():
        if word.startswith("/"):
            (root / word.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(word, root / word.lstrip("/"))
    archive = subprocess.run(["tar", "-C", root, "-c", "."], check=True, capture_output=True).stdout
    engine.docker("import", "-", "asleep:1", stdin=archive)
    engine.docker("run", "-d", "--privileged", "--network", NETWORK, "-v", "/var", "asleep:1", "/bin/sleep", "600")


def killed(settings: Settings) -> None:
    """End the engine as a crash of the machine's owner would."""
    pid = engines.alive(settings)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert host.wait(lambda: engines.alive(settings) is None, 10)


def test_an_engine_that_ends_well_leaves_nothing(settings: Settings) -> None:
    before = of_the_machine(settings)
    a_container(engines.start(settings), settings.cache)
    assert of_the_machine(settings)["links"]
    lifecycle.down(settings, Progress())
    assert leftovers(settings) == []
    assert of_the_machine(settings) == before


def test_an_engine_that_was_killed_leaves_nothing(settings: Settings) -> None:
    before = of_the_machine(settings)
    a_container(engines.start(settings), settings.cache)
    asleep = [path for path in Path("/proc").iterdir() if host.read(path / "cmdline").startswith("/bin/sleep\x00600")]
    assert asleep
    killed(settings)
    assert host.wait(lambda: not any(path.exists() for path in asleep), 10)
    assert leftovers(settings) != []
    lifecycle.down(settings, Progress())
    assert leftovers(settings) == []
    assert of_the_machine(settings) == before


def test_after_a_kill_it_starts_again(settings: Settings) -> None:
    engines.start(settings)
    killed(settings)
    begun = time.monotonic()
    assert NETWORK in engines.start(settings).docker("network", "ls", "--format", "{{.Name}}").split()
    assert time.monotonic() - begun < 60


def test_two_private_engines_do_not_meet(settings: Settings) -> None:
    engines.start(settings)
    other = Settings(name="other", cache=settings.cache.parent / "other", engine="private")
    rules = host.marked(engines.bridge(settings))
    try:
        engines.start(other)
        assert host.marked(engines.bridge(settings)) == rules
    finally:
        lifecycle.down(other, Progress())
    assert host.marked(engines.bridge(settings)) == rules
    assert engines.find(settings) is not None
