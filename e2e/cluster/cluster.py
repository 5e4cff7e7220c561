"""The cluster as one thing: up, down, its images, and every change and fault."""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from e2e.cluster import faults, lifecycle, monitoring
from e2e.cluster.command import CommandError, persistent, run, transient
from e2e.cluster.current import CurrentCluster
from e2e.cluster.kind import Machine
from e2e.cluster.machine import engine as engines
from e2e.cluster.machine import preflight, speed, usage
from e2e.cluster.machine.engine import Engine
from e2e.cluster.machine.leftovers import leftovers
from e2e.cluster.machine.speed import Speed
from e2e.cluster.progress import Progress, together
from e2e.cluster.settings import Settings, WorkerSize
from e2e.cluster.supplies import images, supply, tools

OURS = ("operator", "segment", "gateway")
RESTS = 0.2
"""Share of its cores that a worker uses at most where nothing goes on: the kubelet alone takes a tenth of the smallest."""
ON_WORKERS = ("segment", "gateway")


class NotUpError(RuntimeError):
    """The cluster is not running; the message says how to start it."""


@dataclass(frozen=True)
class Cluster:
    """A kind cluster of our own. Methods that need it running raise NotUpError when it is not."""

    settings: Settings = field(default_factory=Settings)
    progress: Progress = field(default_factory=Progress)

    @staticmethod
    def current(progress: Progress | None = None) -> CurrentCluster:
        """The kubeconfig's cluster, with the same methods as far as they make sense there."""
        return CurrentCluster.here(progress)

    @property
    def prometheus_url(self) -> str:
        """Inside the cluster."""
        return monitoring.URL

    @property
    def query_set(self) -> str:
        """Nodes are containers: their use is cAdvisor's to tell."""
        return "cadvisor"

    def missing(self) -> list[str]:
        """One sentence for each thing that has to be there before anything can start."""
        return preflight.problems(preflight.observe(self.settings))

    # ---- life

    def up(self) -> None:
        """Make the cluster be there and ready, with Prometheus. Quick when it is; repairs what is half there."""
        with self._alone():
            lifecycle.up(self.settings, self.progress)

    def prepare(self) -> None:
        """Make all be there that a cluster is made of, and our images, ready for nodes: what `up` and `load_images` would do one after the
        other, at the same time."""

        def ours(base: str) -> None:
            built = self._build(engine, base, tuple(name for name in images.sources() if name not in images.ON_REQUEST))
            with self.progress.step("keep the images' layers for nodes"):
                for name in built.values():
                    images.export(self.settings, engine, name)

        with self._alone():
            engine = lifecycle.an_engine(self.settings, self.progress)
            supply.provide(self.settings, engine, self.progress, ours)

    def down(self) -> list[str]:
        """Remove the cluster and all else of ours that is not in the cache; returns what is left nevertheless."""
        with self._alone():
            lifecycle.down(self.settings, self.progress)
        return leftovers(self.settings)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time: a second `up` or `down` on the same cache waits for the first."""
        self.settings.cache.mkdir(parents=True, exist_ok=True)
        with (self.settings.cache / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self.progress.step("wait for another up or down to end"):
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def status(self) -> dict[str, Any]:
        """What runs: engine, nodes with their sizes, where the kubeconfig is. Never raises NotUpError."""
        engine = engines.find(self.settings)
        if engine is None:
            return {"name": self.settings.name, "running": False, "engine": None, "nodes": []}
        return {
            "name": self.settings.name,
            "running": lifecycle.healthy(self.settings, engine),
            "engine": {"host": engine.host, "private": engine.private},
            "kubeconfig": str(self.settings.kubeconfig),
            "nodes": [self._node(engine, name) for name in lifecycle.containers(self.settings, engine)],
        }

    def _node(self, engine: Engine, name: str) -> dict[str, Any]:
        found = json.loads(engine.docker("inspect", name))[0]
        limits = found["HostConfig"]
        address = next((each["IPAddress"] for each in found["NetworkSettings"]["Networks"].values()), "")
        cores, memory = round(faults.cores_of_limits(limits), 3), limits["Memory"] / 2**20
        return {"name": name, "state": found["State"]["Status"], "address": address, "cores": cores or None, "memoryMib": memory or None}

    def usage(self, seconds: float) -> str:
        """What the cluster takes of the machine, by program, over so many seconds."""
        engine = self.engine()
        return usage.told(usage.measure(engine, lifecycle.running(self.settings, engine), seconds))

    def at_rest(self) -> bool:
        """Whether no worker uses more than a fifth of its cores. Images that are unpacked look like another tenant to who plans."""
        used = monitoring.used_cores(self.kubectl)
        return all(used.get(node, 1.0) <= RESTS * self.size(node).cores for node in self.settings.worker_names())

    # ---- use

    def env(self) -> dict[str, str]:
        """Environment for kubectl, helm and Kubernetes clients."""
        return {"KUBECONFIG": str(self.settings.kubeconfig)}

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, timeout: float | None = None) -> str:
        """`kubectl WORDS…` on this cluster, its stdout. While the API server is away it is asked again; but not with `exec`: the work may
        have been done before the connection was lost."""

        def once() -> str:
            return run([self.tool(tools.KUBECTL), *words], env=self.env(), stdin=stdin, check=check, timeout=timeout)

        return once() if "exec" in words else persistent(once)

    def helm(self, *words: str) -> str:
        """`helm WORDS…` on this cluster, its stdout. Helm that lost its connection leaves a release `pending` for ever: that mark is
        removed before the next try."""

        def again(error: CommandError) -> bool:
            pending = "another operation" in error.output
            if pending or transient(error):
                states = "pending-install,pending-upgrade,pending-rollback"
                self.kubectl("delete", "secret", "-A", "-l", f"owner=helm,status in ({states})")
            return pending or transient(error)

        return persistent(lambda: run([self.tool(tools.HELM), *words], env=self.env()), again=again)

    def apply(self, manifest: str) -> str:
        return self.kubectl("apply", "-f", "-", stdin=manifest)

    def tool(self, tool: tools.Tool) -> str:
        """Path of kind, kubectl or helm."""
        path = tool.find(self.settings)
        if path is None:
            raise NotUpError(f"{tool.program} is not there yet: run `python -m e2e.cluster up`.")
        return path

    def engine(self) -> Engine:
        """The engine that the cluster runs on."""
        engine = engines.find(self.settings)
        if engine is None or not self.settings.kubeconfig.exists():
            raise NotUpError("The cluster is not running: start it with `python -m e2e.cluster up`.")
        return engine

    # ---- images

    def images_engine(self) -> Engine:
        """The engine that images are built on, also where no cluster runs; `build_images` starts it."""
        engine = engines.find(self.settings)
        if engine is None:
            raise NotUpError("No engine runs: `python -m e2e.cluster up` starts one.")
        return engine

    def build_images(self, names: Sequence[str] = OURS) -> dict[str, str]:
        """Build what changed; the images' full names by short name. Starts an engine when none runs."""
        with self._alone():
            engine = lifecycle.an_engine(self.settings, self.progress)
            base = supply.base(self.settings, engine, self.progress)
        return self._build(engine, base, names)

    def _build(self, engine: Engine, base: str, names: Sequence[str]) -> dict[str, str]:
        known = images.sources()
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"no such image: {', '.join(unknown)}; there are {', '.join(known)}")
        built: dict[str, str] = {}

        def one(name: str) -> None:
            with self.progress.step(f"build the {name} image"):
                built[name] = images.build(self.settings, engine, known[name], base)

        together([lambda name=name: one(name) for name in names])  # type: ignore[misc]
        return built

    def load_images(self, names: Sequence[str] = OURS, nodes: Sequence[str] | None = None) -> dict[str, str]:
        """Build what changed and make the nodes know it; the images' full names, as pods name them, by short name."""
        built = self.build_images(names)
        with self.progress.step(f"give the nodes {', '.join(names)}"):
            targets = lifecycle.running(self.settings, self.engine()) if nodes is None else nodes
            images.load(self.settings, self.engine(), [*built.values(), *(images.sources()[name].dev for name in names)], targets)
        workers = [node for node in targets if node in self.settings.worker_names()]
        if ahead := [built[name] for name in names if name in ON_WORKERS]:
            if "segment" in names:
                self.tell_speeds(workers)
            with self.progress.step(f"unpack {', '.join(name for name in names if name in ON_WORKERS)} on the workers"):
                images.unpack(self.settings, self.engine(), ahead, workers)
        return built

    def image(self, name: str) -> str:
        """The full name of our image as it would be built now."""
        return images.tag(self.engine(), images.sources()[name], self.base())

    def base(self) -> str:
        """The Debian image that ours are built on."""
        return supply.choose(self.settings, self.images_engine()).base

    # ---- changes and faults

    def size(self, node: str) -> WorkerSize:
        """The size that the worker was made with."""
        names = self.settings.worker_names()
        if node not in names:
            raise ValueError(f"{node} is not a worker; there are {', '.join(names)}")
        return self.settings.workers[names.index(node)]

    def cpu(self, node: str, cores: float, *, hidden: bool = False) -> None:
        """Give the node so many cores. The cluster is told (allocatable, labels) unless `hidden`."""
        size = WorkerSize(cores, self._allocatable_mib(node), self.size(node).trusted)
        faults.limit_cpu(self.engine(), node, cores)
        if not hidden:
            self._announce(node, size)

    def memory(self, node: str, memory_mib: int, *, hidden: bool = False) -> None:
        """Give pods on the node so much memory. The cluster is told unless `hidden`."""
        reserved = faults.reserved_of(self.engine(), node)["cpu"] / 1000
        size = WorkerSize(Machine.here().cores - reserved, memory_mib, self.size(node).trusted)
        faults.limit_memory(self.engine(), node, memory_mib)
        if not hidden:
            self._announce(node, size)

    def _allocatable_mib(self, node: str) -> int:
        self.size(node)
        return Machine.here().memory_mib - faults.reserved_of(self.engine(), node)["memory"]

    def _announce(self, node: str, size: WorkerSize) -> None:
        faults.announce(self.engine(), node, Machine.here(), size)
        self._label(node, size.labels() | self.speeds(size.cores)[size.cores].labels())

    def speeds(self, *cores: float) -> Mapping[float, Speed]:
        """What workers of so many cores compute; measured in the segment image once for each cluster, as the machine is now: what else runs
        on it takes caches and memory bandwidth, which no quota gives back."""
        (image,) = self.build_images(("segment",)).values()

        @contextmanager
        def measuring() -> Iterator[speed.Ask]:
            with (
                self.progress.step("measure what workers of such sizes compute"),
                speed.container(self.images_engine(), image, f"{self.settings.name}-speed") as ask,
            ):
                yield ask

        return speed.of_this_machine(self.settings.state, image.rpartition(":")[2], cores, measuring)

    def tell_speeds(self, workers: Sequence[str], *, anew: bool = False) -> None:
        """Label these workers with what they compute; what they were given to by `cpu` stays, but `anew`."""

        def labelled(node: str) -> bool:
            return speed.COMPUTE in json.loads(self.kubectl("get", "node", node, "-o", "json"))["metadata"]["labels"]

        lacking = [node for node in workers if anew or not labelled(node)]
        fast = self.speeds(*(self.size(node).cores for node in lacking)) if lacking else {}
        for node in lacking:
            self._label(node, fast[self.size(node).cores].labels())

    def _label(self, node: str, labels: Mapping[str, str]) -> None:
        self.kubectl("label", "node", node, "--overwrite", *(f"{key}={value}" for key, value in labels.items()))

    def link(self, node: str, mbit: float | None = None, latency_ms: float = 0.0) -> None:
        """Limit what leaves the node; without arguments the limit is lifted."""
        if mbit is None and latency_ms == 0:
            faults.clear_link(self.engine(), node)
        else:
            faults.limit_link(self.engine(), node, faults.Link(mbit, latency_ms))

    def address(self, node: str) -> str:
        """The node's IP address, as this machine reaches it."""
        words = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return self.engine().docker("inspect", "-f", words, node).strip()

    def stop(self, node: str) -> None:
        """Switch the node off, without warning."""
        faults.stop(self.engine(), node)

    def start(self, node: str) -> None:
        """Switch it on again, and wait until the cluster sees it."""
        engine = self.engine()
        faults.start(engine, node)
        lifecycle.reconnect(self.settings, engine)
        self.kubectl("wait", "--for=condition=Ready", f"node/{node}", "--timeout=600s")

    def kill(self, pod: str, program: str) -> None:
        """Kill a program inside a pod, as if it had crashed."""
        faults.kill(self.kubectl, pod, program)

    def prometheus(self, *, running: bool) -> None:
        """Switch Prometheus off, or on again; returns when that is so."""
        monitoring.scale(self.kubectl, 1 if running else 0)

    def burn(self, node: str, cores: float | None = None, pulse_seconds: float = 0.0, threads: int = 0) -> None:
        """A pod of another tenant keeps `cores` of the node busy (default: all of them); with `pulse_seconds` every other such while;
        with as many threads as cores, or with so many."""
        self.load_images(("burner",), [node])
        size = self.size(node).cores
        limited = cores is not None and cores < size
        faults.burn(
            self.kubectl,
            node,
            min(cores or size, size),
            self.image("burner"),
            limited=limited,
            pulse_seconds=pulse_seconds,
            threads=threads,
        )

    def stop_burning(self, node: str) -> None:
        faults.extinguish(self.kubectl, node)
