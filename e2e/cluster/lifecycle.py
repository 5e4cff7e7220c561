"""From nothing, or from any half of it, to a running cluster, and back to nothing."""

import json
import os
import shutil
from pathlib import Path

from e2e.cluster import faults, kind, monitoring
from e2e.cluster.command import CommandError, persistent, run
from e2e.cluster.machine import engine as engines
from e2e.cluster.machine import host, network
from e2e.cluster.machine.engine import Engine
from e2e.cluster.offline.base import node_base_tag
from e2e.cluster.progress import Progress, together
from e2e.cluster.settings import TRUSTED, Settings
from e2e.cluster.supplies import images, packages, supply, tools

_LABEL = "io.x-k8s.kind.cluster"
_KIND_NETWORK = "kind"
_NODES_SECONDS = 600.0  # kubelets that wait for the processor are slow, not broken


def an_engine(settings: Settings, progress: Progress) -> Engine:
    """The engine that answers, or a private one, installed and started."""
    found = engines.find(settings)
    if found is not None:
        return found
    if absent := packages.missing(("dockerd", "jq", "ip", "iptables", "unshare")):
        with progress.step(f"no Docker engine answers: install {', '.join(absent)}"):
            packages.install(absent, settings.logs / "apt.log")
    with progress.step("start a private Docker engine"):
        return engines.start(settings)


def containers(settings: Settings, engine: Engine) -> list[str]:
    """Names of all our nodes' containers, in kind's order, running or not."""
    names = engine.docker("ps", "-a", "--filter", f"label={_LABEL}={settings.name}", "--format", "{{.Names}}").split()
    return [name for name in settings.nodes() if name in names] + sorted(set(names) - set(settings.nodes()))


def running(settings: Settings, engine: Engine) -> list[str]:
    names = engine.docker("ps", "--filter", f"label={_LABEL}={settings.name}", "--format", "{{.Names}}").split()
    return [name for name in settings.nodes() if name in names]


def _kubectl(settings: Settings, *words: str, stdin: str | None = None, check: bool = True) -> str:
    path = tools.KUBECTL.find(settings)
    if path is None:
        return ""
    return persistent(lambda: run([path, *words], env={"KUBECONFIG": str(settings.kubeconfig)}, stdin=stdin, check=check, timeout=900))


def healthy(settings: Settings, engine: Engine) -> bool:
    """Whether all nodes run, the API server answers, and every node is ready."""
    if not settings.kubeconfig.exists() or len(running(settings, engine)) < len(settings.nodes()):
        return False
    text = _kubectl(settings, "get", "nodes", "-o", "json", "--request-timeout=5s", check=False)
    if not text.strip():
        return False
    ready = {
        item["metadata"]["name"]
        for item in json.loads(text)["items"]
        if any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"].get("conditions", []))
    }
    return ready >= set(settings.nodes())


def up(settings: Settings, progress: Progress) -> None:
    """Bring the cluster up; a finished one is left as it is, a half-made one is made anew."""
    settings.state.mkdir(parents=True, exist_ok=True)
    engine = an_engine(settings, progress)
    finished = settings.state / "finished"
    if finished.exists() and healthy(settings, engine):
        progress.say(f"the cluster {settings.name} is up")
        return
    parts = supply.provide(settings, engine, progress)
    delete(settings, engine)
    if not engine.docker("ps", "-q", "--filter", f"label={_LABEL}").strip():
        images.prune(settings, engine, (parts.node_image, *((node_base_tag(),) if not parts.public else ())))
    finished.unlink(missing_ok=True)
    _remember_network(settings, engine)
    extra: dict[str, str] = {}

    def small_images() -> None:
        for name in ("prometheus", "burner"):
            with progress.step(f"build the {name} image"):
                extra[name] = images.build(settings, engine, images.sources()[name], parts.base)
                images.export(settings, engine, extra[name])

    def nodes() -> None:
        with progress.step(f"create the cluster: a control plane and {len(settings.workers)} workers"):
            _create(settings, engine, parts)

    def routes() -> None:
        if not parts.public:
            network.connect(engine, settings.nodes(), families=settings.families)

    together([nodes, routes, small_images])

    def prometheus() -> None:
        with progress.step("start Prometheus"):
            images.load(settings, engine, [extra["prometheus"]], [settings.control_plane])
            monitoring.deploy(lambda *words, **options: _kubectl(settings, *words, **options), extra["prometheus"])
            monitoring.wait(lambda *words, **options: _kubectl(settings, *words, **options))

    def limits() -> None:
        with progress.step("give every worker its share of CPU and memory"):
            for name, size in zip(settings.worker_names(), settings.workers, strict=True):
                faults.limit_cpu(engine, name, size.cores)
                faults.limit_memory(engine, name, size.memory_mib)
            images.load(settings, engine, [extra["burner"]], settings.worker_names())

    def ready() -> None:
        with progress.step("wait for nodes and DNS"):
            if not host.wait(lambda: healthy(settings, engine), _NODES_SECONDS):
                state = _kubectl(settings, "get", "nodes", "--request-timeout=5s", check=False)
                why = "`docker exec NODE journalctl -u kubelet` says why"
                raise TimeoutError(f"not all nodes are ready after {_NODES_SECONDS:g} s; {why}:\n{state}")
            for name, size in zip(settings.worker_names(), settings.workers, strict=True):
                if size.trusted:
                    _kubectl(settings, "label", "node", name, "--overwrite", f"{TRUSTED}=true")
            _kubectl(settings, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=600s")

    together([prometheus, limits, ready])
    finished.touch()


def _create(settings: Settings, engine: Engine, parts: supply.Supply) -> None:
    config = kind.write(settings, kind.Machine.here(), own_network=not parts.public)
    path = tools.KIND.find(settings)
    if path is None:
        raise RuntimeError("kind was not built")
    words = [path, "create", "cluster", "--name", settings.name, "--image", parts.node_image, "--config", str(config)]
    words += ["--kubeconfig", str(settings.kubeconfig), "--wait", "0s"]
    # kind calls the first docker on the PATH
    env = engine.env() | {"PATH": f"{Path(engine.client).parent}:{os.environ.get('PATH', '')}"}
    try:
        run(words, env=env, log=settings.logs / "kind.log")
    except CommandError:  # kind has removed its nodes; a join that timed out on a busy machine is worth a second try
        delete(settings, engine)
        run(words, env=env, log=settings.logs / "kind.log")


def _remember_network(settings: Settings, engine: Engine) -> None:
    """Note whether kind's network was there before us, on an engine that is not ours."""
    note = settings.state / "kind-network-is-ours"
    if not engine.private and _KIND_NETWORK not in engine.docker("network", "ls", "--format", "{{.Name}}").split():
        note.touch()


def reconnect(settings: Settings, engine: Engine) -> None:
    """After a node came back: its routes, and the others' if its address changed."""
    if (settings.state / "pods").is_dir() and not supply.choose(settings, engine).public:
        alive = running(settings, engine)
        there = tuple(name for name in settings.nodes() if name in alive)
        network.connect(engine, there, all_nodes=settings.nodes(), families=settings.families)


def delete(settings: Settings, engine: Engine) -> None:
    """Remove the cluster's containers and their volumes, finished or not."""
    if names := containers(settings, engine):
        engine.docker("rm", "-f", "-v", *names)
    settings.kubeconfig.unlink(missing_ok=True)


def down(settings: Settings, progress: Progress) -> None:
    """Remove the cluster, the private engine if no other cluster is on it, and every file outside the cache's lasting parts."""
    engine = engines.find(settings)
    if engine is None and engines.remains(settings):
        with progress.step("start the engine once more, to remove what it left"):
            engine = engines.start(settings)
    if engine is not None:
        with progress.step("delete the cluster"):
            delete(settings, engine)
            if (settings.state / "kind-network-is-ours").exists():
                engine.docker("network", "rm", _KIND_NETWORK, check=False)
    shutil.rmtree(settings.state, ignore_errors=True)
    if engine is not None and engine.private:
        if engine.docker("ps", "-aq", "--filter", f"label={_LABEL}").split():
            return
        if others := engine.docker("ps", "-aq").split():
            engine.docker("rm", "-f", "-v", *others)
        with progress.step("stop the private Docker engine"):
            engines.stop(settings)
    elif engine is None:
        engines.stop(settings)
    for part in settings.cache.glob("part-*"):
        shutil.rmtree(part, ignore_errors=True)
    if settings.run.is_dir() and not any(settings.run.iterdir()):
        settings.run.rmdir()
