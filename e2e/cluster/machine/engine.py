"""The Docker engine: the one that answers, else a private one whose processes and mounts all end with one process.

The private engine runs in a PID and a mount namespace of its own. Its first process dies with the process that
`unshare` is, and with it every container, shim and overlay mount: also after `kill -9`. What a namespace does not hold
(a bridge, firewall rules, cgroups) is named or recorded so that `host` can take it away.
"""

import hashlib
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.machine.capabilities import missing_here, runtime_script
from e2e.cluster.machine.host import Traces, fine_quotas, raise_limits, weigh
from e2e.cluster.settings import Settings

NETWORK = "splitinference"
SUBNET_6 = "fd00:172:31::/64"
SUBNETS = tuple(f"172.{second}.240.0/24" for second in range(31, 16, -1))


class EngineUnavailableError(RuntimeError):
    """No engine can be had; the message says what to do."""


@dataclass(frozen=True)
class Engine:
    """A Docker engine that answers, and the client to speak to it with. `host` None is the client's own default."""

    client: str
    host: str | None
    private: bool

    def env(self) -> dict[str, str]:
        """Environment for `docker` and `kind`."""
        env = {"DOCKER_BUILDKIT": "1", "DOCKER_CLI_HINTS": "false"}
        if self.host:
            env["DOCKER_HOST"] = self.host
        if self.private:
            env["KIND_EXPERIMENTAL_DOCKER_NETWORK"] = NETWORK
            env.pop("DOCKER_CONTEXT", None)
        return env

    def docker(
        self, *words: str, stdin: str | bytes | None = None, check: bool = True, log: Path | None = None, timeout: float | None = None
    ) -> str:
        """`docker WORDS…`, its stdout."""
        return run([self.client, *words], env=self.env(), stdin=stdin, check=check, log=log, timeout=timeout)

    def execute(self, node: str, script: str, *, check: bool = True) -> str:
        """Run a shell script in the container `node`."""
        return self.docker("exec", "-i", node, "sh", "-eu", stdin=script, check=check)

    def has_image(self, name: str) -> bool:
        return bool(self.docker("images", "-q", name).strip())


def clients() -> list[str]:
    """docker clients here, the ones that can build with BuildKit first: since 23 that needs the buildx plugin."""
    found = [path for folder in (*os.environ.get("PATH", "").split(":"), "/usr/bin") if os.access(path := f"{folder}/docker", os.X_OK)]
    found = list(dict.fromkeys(found))
    return sorted(found, key=lambda client: not _can_build(client))


def _can_build(client: str) -> bool:
    words = run([client, "--version"], check=False).split()
    major = next((int(word.split(".")[0]) for word in words if word[:1].isdigit()), 0)
    return major < 23 or succeeds([client, "buildx", "version"])


def find(settings: Settings) -> Engine | None:
    """The engine to use if one answers: our private one, else (unless the settings say `private`) the user's."""
    usable = clients()
    if not usable:
        return None
    if alive(settings):
        engine = Engine(usable[0], f"unix://{_socket(settings)}", private=True)
        if _answers(engine):
            return engine
    if settings.engine != "private":
        engine = Engine(usable[0], os.environ.get("DOCKER_HOST"), private=False)
        if _answers(engine) and "bridge" in engine.docker("network", "ls", "--format", "{{.Name}}", check=False).split():
            return engine
    return None


def _answers(engine: Engine) -> bool:
    return succeeds([engine.client, "info"], env=engine.env(), timeout=15)


def bridge(settings: Settings) -> str:
    """The name of the nodes' bridge: one per cache, so that two private engines do not meet."""
    return f"si-{_identity(settings)}"


def cgroup(settings: Settings) -> str:
    """The cgroup that all our containers are in."""
    return f"splitinference-{_identity(settings)}"


def _identity(settings: Settings) -> str:
    return hashlib.sha256(str(settings.cache).encode()).hexdigest()[:8]


def _home(settings: Settings) -> Path:
    return settings.run / "engine"


def _socket(settings: Settings) -> Path:
    """A socket's path has a limit of 108 bytes: beside the cache where that is short, else in /run."""
    path = _home(settings) / "docker.sock"
    return path if len(str(path)) < 100 else Path("/run") / f"splitinference-{os.getuid()}.sock"


def alive(settings: Settings) -> int | None:
    """The process that holds our private engine's namespaces, if it lives (and is not another one with a recycled id)."""
    try:
        pid, begun = (_home(settings) / "holder").read_text().split()
    except (OSError, ValueError):
        return None
    return int(pid) if begin_of(int(pid)) == begun else None


def begin_of(pid: int) -> str | None:
    """When the process began, in clock ticks since boot: tells a process from a later one with the same id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def start(settings: Settings) -> Engine:
    """Start the private engine and wait until it answers. Needs root; `missing_packages` must be none."""
    if os.geteuid() != 0:
        raise EngineUnavailableError("No Docker engine answers, and starting a private one needs root: start Docker, or run this as root.")
    home = _home(settings)
    stop(settings)
    home.mkdir(parents=True, exist_ok=True)
    traces = Traces.record(home / "traces.json", bridge=bridge(settings), cgroup=cgroup(settings))
    raise_limits()
    fine_quotas()
    weigh(traces.cgroup)
    config: dict[str, object] = {
        "bridge": "none",
        "iptables": False,
        "cgroup-parent": f"/{cgroup(settings)}",
        "storage-driver": "overlay2",
        "builder": {"gc": {"enabled": True, "defaultKeepStorage": "8GB"}},
    }
    if without := missing_here():
        script = home / "runtime"
        script.write_text(runtime_script(shutil.which("runc") or "/usr/sbin/runc", without))
        script.chmod(0o755)
        config |= {"runtimes": {"narrow": {"path": str(script)}}, "default-runtime": "narrow"}
    (home / "daemon.json").write_text(json.dumps(config))
    socket = _socket(settings)
    dockerd = shutil.which("dockerd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin") or "dockerd"
    daemon = [dockerd, "--config-file", f"{home}/daemon.json", "--data-root", str(settings.cache / "engine"), "--exec-root", f"{home}/exec"]
    daemon += ["--host", f"unix://{socket}", "--pidfile", f"{home}/dockerd.pid"]
    first = """trap 'kill -TERM $daemon' TERM; "$@" & daemon=$!; while kill -0 $daemon 2>/dev/null; do wait $daemon; done"""
    namespaces = ["unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    pid = _spawn([*namespaces, "sh", "-c", first, "sh", *daemon], home / "dockerd.log")
    (home / "holder").write_text(f"{pid} {begin_of(pid)}")
    engine = Engine(clients()[0], f"unix://{socket}", private=True)
    for _ in range(300):
        if _gone(pid, 0):
            tail = "\n".join((home / "dockerd.log").read_text().splitlines()[-8:])
            raise EngineUnavailableError(f"The private Docker engine ended at its start; {home}/dockerd.log says:\n{tail}")
        if socket.exists() and succeeds([engine.client, "version"], env=engine.env(), timeout=5):
            break
        time.sleep(0.1)
    else:
        raise EngineUnavailableError(f"The private Docker engine did not answer within a minute; see {home}/dockerd.log.")
    traces.open_firewall(_make_network(engine, traces.bridge, settings.families))
    return engine


def _spawn(command: list[str], log: Path) -> int:
    """Start a process that outlives this one, in a session of its own; returns its id."""
    files = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawnp(command[0], command, os.environ, file_actions=files, setsid=True)


def _make_network(engine: Engine, name: str, families: tuple[str, ...]) -> str:
    """The network of the nodes, on the bridge `name`, in a subnet that nobody routes to yet; returns the subnet. With IPv6 besides where
    the cluster needs it: the engine knows no network without IPv4."""
    more = ["--ipv6", "--subnet", SUBNET_6] if "ipv6" in families else []
    if NETWORK in engine.docker("network", "ls", "--format", "{{.Name}}").split():
        for container in engine.docker("ps", "-aq").split():  # of an engine that was killed: none of them runs
            engine.docker("rm", "-f", "-v", container)
        engine.docker("network", "rm", NETWORK)
    taken = run(["ip", "-4", "route", "show", "table", "all"], check=False)
    option = f"com.docker.network.bridge.name={name}"
    for subnet in SUBNETS:
        if subnet.rsplit(".", 2)[0] not in taken:
            engine.docker("network", "create", "--driver", "bridge", "--subnet", subnet, *more, "--opt", option, NETWORK)
            return subnet
    raise EngineUnavailableError("No free private subnet in 172.17.0.0–172.31.255.255 for the nodes' network; free one of them.")


def remains(settings: Settings) -> bool:
    """Whether containers of the private engine outlived it on disk, as after `kill -9`."""
    folder = settings.cache / "engine" / "containers"
    return folder.is_dir() and any(folder.iterdir())


def stop(settings: Settings) -> None:
    """End the private engine and take away what it left on the machine. Harmless when there is none."""
    home = _home(settings)
    if pid := alive(settings):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            _signal(int(child), signal.SIGTERM)
        if not _gone(pid, 15):
            _signal(pid, signal.SIGKILL)
            _gone(pid, 10)
    if (home / "traces.json").exists():
        Traces.load(home / "traces.json").remove()
    _socket(settings).unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)


def _signal(pid: int, what: signal.Signals) -> None:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return


def _gone(pid: int, seconds: float) -> bool:
    """Whether the process has ended within the time, also as a child of ours."""
    until = time.monotonic() + seconds
    while True:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if begin_of(pid) is None:
            return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
