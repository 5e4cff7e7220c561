"""What the harness is told once: sizes of the nodes, versions, and the folders that it may write to."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import floor
from pathlib import Path

KUBERNETES = "v1.34.4"  # 1.35 refuses cgroup v1 unless told otherwise
KIND = "v0.33.0"
# these of the time of that Kubernetes: with its libraries, compiled once for all
HELM = "v4.0.5"
COREDNS = "v1.13.0"
ETCD = "v3.6.5"
KWOK = "v0.8.0"
NETWORK_POLICIES = "v0.7.0"
PUBLIC_NODE_IMAGE = "kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
PUBLIC_BASE = "docker.io/library/debian:trixie"
OFFLINE_BASE = "localhost/debian:trixie"

LINK_MBPS = 1000.0
LINK_RTT_MS = 0.5

TRUSTED = "node-restriction.kubernetes.io/splitinference-trusted"
MODELS_ON_NODE = "/var/lib/splitinference/models"
BLOBS_ON_NODE = "/var/lib/splitinference/blobs"

NODE_OVERHEAD_MIB = 400  # kubelet, containerd, shims and page cache of a worker, outside what pods may request

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class WorkerSize:
    """What a worker may use; both limits are enforced and are its allocatable."""

    cores: float
    memory_mib: int
    trusted: bool = False

    def labels(self) -> dict[str, str]:
        """The node labels that hold whatever the machine (docs/reference/kubernetes-names.md)."""
        labels = {"splitinference.dev/link-mbps": f"{LINK_MBPS:g}", "splitinference.dev/link-rtt-ms": f"{LINK_RTT_MS:g}"}
        return labels | ({TRUSTED: "true"} if self.trusted else {})

    def within(self, share: float) -> "WorkerSize":
        """The same with this share of its cores, rounded down to hundredths."""
        return replace(self, cores=floor(self.cores * share * 100) / 100)


SIZES = (
    WorkerSize(1.0, 700, trusted=True),
    WorkerSize(0.8, 650),
    WorkerSize(0.6, 872, trusted=True),
    WorkerSize(0.5, 650),
)
"""Unequal on purpose, and so small that SmolLM2-135M needs three of the four, wherever its gateway (192 MiB) runs and wherever room is left
for the second one of a rollout; the segment between those on trusted nodes then holds ten layers or more, and the fourth node, of the same
memory, has room for it."""

FAMILIES = {"ipv4": ("ipv4",), "ipv6": ("ipv6",), "dual": ("ipv4", "ipv6")}
"""What a cluster's addresses may be, and the families that it then has; the first is that of Services which ask for one."""
CONTROL_PLANE_SHARE = 0.25
"""Of the machine's cores, for the control plane, Prometheus, the operator, and those who ask."""


def cores_here(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores that this process may use: those that it may run on, within the quota of its cgroup."""
    cores = float(len(os.sched_getaffinity(0)))
    quotas = [_quota(cgroup / "cpu.max"), _quota(cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us")]
    return min(cores, *(quota for quota in quotas if quota > 0), cores)


def _quota(*files: Path) -> float:
    """Cores of a quota; 0: there is none."""
    try:
        words = " ".join(file.read_text() for file in files).split()
        return max(0.0, int(words[0]) / int(words[1]))
    except (OSError, ValueError, IndexError, ZeroDivisionError):
        return 0.0


def fitting(sizes: Sequence[WorkerSize], cores: float) -> tuple[WorkerSize, ...]:
    """The sizes as they fit on a machine of so many cores: all workers together take what the control plane leaves, and no more. Otherwise
    they would take it from each other, which no figure of theirs shows, and what is predicted could not be met."""
    wanted = sum(size.cores for size in sizes)
    return tuple(size.within(min(1.0, (1.0 - CONTROL_PLANE_SHARE) * cores / wanted)) for size in sizes)


def default_cache() -> Path:
    """`SPLITINFERENCE_CACHE`, else the user's cache folder."""
    if given := os.environ.get("SPLITINFERENCE_CACHE"):
        return Path(given).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splitinference"


@dataclass(frozen=True)
class Settings:
    """One cluster's settings."""

    name: str = "splitinference"
    workers: tuple[WorkerSize, ...] = field(default_factory=lambda: fitting(SIZES, cores_here()))
    cache: Path = field(default_factory=default_cache)
    engine: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_ENGINE", "auto"))
    images: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_IMAGES", "auto"))
    family: str = field(default_factory=lambda: os.environ.get("E2E_IP_FAMILY", "ipv4"))
    """Of nodes, pods and Services: ipv4, ipv6 and nothing else, or dual: both."""

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"E2E_IP_FAMILY is {self.family!r}, expected one of {', '.join(FAMILIES)}")

    @property
    def families(self) -> tuple[str, ...]:
        """The families of addresses that nodes, pods and Services have."""
        return FAMILIES[self.family]

    @property
    def run(self) -> Path:
        """Everything that lives only as long as clusters do; gone after `down`."""
        return self.cache / "run"

    @property
    def state(self) -> Path:
        """This cluster's part of the run folder."""
        return self.run / self.name

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def models(self) -> Path:
        """Folder of models, seen on every worker as MODELS_ON_NODE."""
        return self.cache / "models"

    @property
    def blobs(self) -> Path:
        """Image layers by digest, seen on every node as BLOBS_ON_NODE."""
        return self.cache / "blobs"

    @property
    def logs(self) -> Path:
        return self.cache / "log"

    @property
    def control_plane(self) -> str:
        return f"{self.name}-control-plane"

    def worker_names(self) -> tuple[str, ...]:
        """kind's names: the first worker has no number."""
        return tuple(f"{self.name}-worker{'' if i == 0 else i + 1}" for i in range(len(self.workers)))

    def nodes(self) -> tuple[str, ...]:
        return (self.control_plane, *self.worker_names())

    def with_workers(self, count: int) -> "Settings":
        """The same with so many workers; beyond four the sizes repeat."""
        return replace(self, workers=fitting([SIZES[i % len(SIZES)] for i in range(count)], cores_here()))
