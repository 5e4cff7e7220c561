"""What is missing, said before anything starts: one sentence each, with what to do."""

import os
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.machine import engine as engines
from e2e.cluster.offline import gobuild
from e2e.cluster.settings import Settings
from e2e.cluster.supplies import packages, supply

GIB = 2**30
RUN_GIB = 6.0  # nodes, unpacked images, logs of a running cluster
IMAGES_GIB = 9.0  # bases, the node image and our images with their layers
GO_GIB = 8.0  # Go's caches while Kubernetes is built
MEMORY_GIB = 6.0


@dataclass(frozen=True)
class Facts:
    """What was found; `problems` judges it."""

    root: bool
    engine: bool
    private: bool
    debian: bool
    apt: bool
    absent: tuple[str, ...]
    public: bool
    to_build: tuple[str, ...]
    debian_images: bool
    go: bool
    disk_gib: float
    cache: Path
    writable: bool
    memory_gib: float
    busy_ports: tuple[int, ...]


def observe(settings: Settings, ports: tuple[int, ...] = ()) -> Facts:
    """Look; change nothing."""
    engine = engines.find(settings)
    parts = supply.choose(settings, engine)
    modules, images = supply.missing(settings, engine, parts)
    place = next(path for path in (settings.cache, *settings.cache.parents) if path.exists())
    wanted = ("dockerd", "jq", "ip", "iptables", "unshare") if engine is None else ()
    return Facts(
        root=os.geteuid() == 0,
        engine=engine is not None,
        private=engine is not None and engine.private,
        debian=Path("/etc/debian_version").exists(),
        apt=shutil.which("apt-get") is not None,
        absent=tuple(packages.missing((*wanted, *(("debootstrap",) if images else ())))),
        public=parts.public,
        to_build=tuple(module.name for module in modules),
        debian_images=images,
        go=gobuild.go() is not None,
        disk_gib=shutil.disk_usage(place).free / GIB,
        cache=settings.cache,
        writable=os.access(place, os.W_OK),
        memory_gib=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB,
        busy_ports=tuple(port for port in ports if busy(port)),
    )


def busy(port: int) -> bool:
    """Whether something listens on this port of the loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


Check = Callable[[Facts], str | None]


def _engine(facts: Facts) -> str | None:
    if facts.engine or facts.root:
        return None
    remedy = "start Docker (or add yourself to the group docker), or run this as root."
    return f"No Docker engine answers, and only root can start a private one: {remedy}"


def _packages(facts: Facts) -> str | None:
    if not facts.absent:
        return None
    names = ", ".join(facts.absent)
    if not facts.apt:
        return f"These programs are missing and apt-get is not here to install them: install {names} with your package manager."
    return (
        None
        if facts.root
        else f"These packages are missing, and only root can install them: run `sudo apt-get install {' '.join(facts.absent)}`."
    )


def _images_need_root(facts: Facts) -> str | None:
    if not facts.debian_images or facts.root:
        return None
    remedy = "run this as root, or where docker.io and registry.k8s.io answer."
    return f"The public images cannot be pulled, and only root can build a Debian base image instead: {remedy}"


def _go(facts: Facts) -> str | None:
    if facts.go or not facts.to_build:
        return None
    names = ", ".join(facts.to_build)
    return f"Go 1.26 or newer is needed to build {names}: install it from https://go.dev/dl, and put it on the PATH."


def _disk(facts: Facts) -> str | None:
    needed = RUN_GIB + (IMAGES_GIB if facts.debian_images else 0) + (GO_GIB if len(facts.to_build) > 1 else 0)
    if facts.disk_gib >= needed:
        return None
    remedy = "free some, or set SPLITINFERENCE_CACHE to a folder on a larger disk."
    return f"{facts.cache} has {facts.disk_gib:.0f} GiB free and about {needed:.0f} are needed: {remedy}"


def _writable(facts: Facts) -> str | None:
    return None if facts.writable else f"{facts.cache} cannot be written to: set SPLITINFERENCE_CACHE to a folder of yours."


def _memory(facts: Facts) -> str | None:
    if facts.memory_gib >= MEMORY_GIB:
        return None
    remedy = "use a larger one, or CLUSTER=current with a cluster of yours."
    return f"This machine has {facts.memory_gib:.0f} GiB of memory and the cluster needs {MEMORY_GIB:.0f}: {remedy}"


def _ports(facts: Facts) -> str | None:
    if not facts.busy_ports:
        return None
    return f"Port {', '.join(map(str, facts.busy_ports))} is in use: end the program that listens there, or choose another port."


CHECKS: tuple[Check, ...] = (_engine, _packages, _images_need_root, _go, _disk, _writable, _memory, _ports)


def problems(facts: Facts) -> list[str]:
    """One sentence for each thing that is missing; empty when everything can start."""
    return [said for check in CHECKS if (said := check(facts)) is not None]
