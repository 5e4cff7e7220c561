"""What of ours is still on the machine, for `down --verify`: nothing should be, outside the cache."""

from collections.abc import Iterator
from pathlib import Path

from e2e.cluster.machine import engine as engines
from e2e.cluster.machine.host import links, marked
from e2e.cluster.settings import Settings


def leftovers(settings: Settings) -> list[str]:
    """One line for each thing that `down` should have removed."""
    return [
        *(f"process {pid}: {words[:120]}" for pid, words in processes(settings)),
        *(f"mount {point}" for point in mounts(settings)),
        *(f"interface {name}" for name in links() if name == engines.bridge(settings)),
        *(f"firewall rule in {table}: {' '.join(rule)}" for table, rule in marked(engines.bridge(settings))),
        *(f"cgroup {path}" for path in cgroups(settings)),
        *(f"file {path}" for path in (settings.run, *settings.cache.glob("part-*")) if path.exists()),
        *(f"container {path.name[:12]} in the stopped engine" for path in containers(settings)),
        *(f"container {name}" for name in running(settings)),
    ]


def processes(settings: Settings) -> Iterator[tuple[int, str]]:
    """Processes that were started with a path in our run folder, or with our engine's data."""
    ours = (str(settings.run), str(settings.cache / "engine"))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if any(f"{path}/" in f"{words}/" for path in ours):
            yield int(entry.name), words


def mounts(settings: Settings) -> list[str]:
    """Mount points below the cache."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [point for point in points if point.startswith(f"{settings.cache}/")]


def cgroups(settings: Settings) -> list[Path]:
    root = Path("/sys/fs/cgroup")
    name = engines.cgroup(settings)
    return [path for path in (root / name, *root.glob(f"*/{name}")) if path.is_dir()]


def containers(settings: Settings) -> list[Path]:
    """Containers on the disk of our engine."""
    folder = settings.cache / "engine" / "containers"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def running(settings: Settings) -> list[str]:
    """Our nodes on the engine that answers, if one does."""
    engine = engines.find(settings)
    if engine is None:
        return []
    return engine.docker("ps", "-a", "--filter", f"label=io.x-k8s.kind.cluster={settings.name}", "--format", "{{.Names}}").split()
