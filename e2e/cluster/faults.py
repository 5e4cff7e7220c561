"""Changes and faults, for real: less CPU or memory for a node, a thin link, a node that stops, a tenant that burns CPU."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

from e2e.cluster.kind import Machine
from e2e.cluster.machine.engine import Engine
from e2e.cluster.settings import NODE_OVERHEAD_MIB, WorkerSize

TENANT = "other-tenant"
LEFT_CORES = 0.25  # what the tenant does not request of what is free, so that new pods are still admitted beside it
LEFT_SHARE = 0.3  # and of a small node this share of it
PERIOD_MICROSECONDS = 10_000
"""Of a node's CPU quota. The default, 100 ms, makes a node with half a core a quick one that sleeps half of the time: a short decode step
then runs at full speed, and a long one waits for whole slices. With 10 ms a step takes what it takes on a slower processor."""
_LEAST_QUOTA_MICROSECONDS = 1000  # the kernel refuses less
_FLAGS = "/var/lib/kubelet/kubeadm-flags.env"


class NotPossibleError(RuntimeError):
    """This machine's kernel, or this cluster, cannot do that; the message says why."""


@dataclass(frozen=True)
class Link:
    """A node's link to all others: what may leave it per second, and how much later it arrives."""

    mbit: float | None = None
    latency_ms: float = 0.0


def limit_cpu(engine: Engine, node: str, cores: float) -> None:
    """The node gets so many cores from now on, enforced by the engine."""
    if cores <= 0:
        raise ValueError(f"cores must be more than 0, not {cores:g}")
    engine.execute(node, _relax(cores))
    period, quota = cpu_quota(cores)
    engine.docker("update", "--cpu-period", str(period), "--cpu-quota", str(quota), node)


def cpu_quota(cores: float) -> tuple[int, int]:
    """Period and quota in microseconds for so many cores (above 0): short periods, as far as the kernel allows."""
    period = max(PERIOD_MICROSECONDS, ceil(_LEAST_QUOTA_MICROSECONDS / cores))
    return period, max(_LEAST_QUOTA_MICROSECONDS, round(cores * period))


def cores_of_node(engine: Engine, node: str) -> float:
    """Cores that the engine lets the node use; 0: there is no limit."""
    found = json.loads(engine.docker("inspect", "-f", "{{json .HostConfig}}", node))
    return cores_of_limits(found)


def cores_of_limits(host_config: Mapping[str, Any]) -> float:
    """The same, of what `docker inspect` calls HostConfig."""
    period, quota = host_config.get("CpuPeriod") or 100_000, host_config.get("CpuQuota") or 0
    return float(quota / period) if quota > 0 else float(host_config.get("NanoCpus") or 0) / 1e9


def _relax(cores: float) -> str:
    """cgroup v1 refuses a quota below that of a group inside: lift those that the new limit makes pointless."""
    return f"""
    cd /sys/fs/cgroup/cpu 2>/dev/null || exit 0
    find . -mindepth 2 -name cpu.cfs_quota_us | while read -r quota; do
      now=$(cat $quota 2>/dev/null) period=$(cat ${{quota%quota_us}}period_us 2>/dev/null) || continue
      [ "$now" -le 0 ] || [ $(( now * 1000 / period )) -le {floor(cores * 1000)} ] || echo -1 > $quota
    done"""


def limit_memory(engine: Engine, node: str, memory_mib: int) -> None:
    """Pods on the node get so much memory, and the node's own programs NODE_OVERHEAD_MIB beside it."""
    if memory_mib <= 0:
        raise ValueError(f"memory must be more than 0 MiB, not {memory_mib}")
    limit = f"{memory_mib + NODE_OVERHEAD_MIB}m"
    engine.docker("update", "--memory", limit, "--memory-swap", limit, node)


def announce(engine: Engine, node: str, machine: Machine, size: WorkerSize) -> None:
    """Let the kubelet report `size` as allocatable; it restarts, pods go on.

    A pod that requested more than is now there is refused at that restart, as on any node that shrinks.
    """
    reserved = machine.reserved(size.cores, size.memory_mib)
    engine.execute(node, f"sed -i -E 's/--system-reserved=[^ \"]+/--system-reserved={reserved}/' {_FLAGS}\nsystemctl restart kubelet")


def reserved_of(engine: Engine, node: str) -> dict[str, int]:
    """The kubelet's system-reserved now: millicores and MiB."""
    text = engine.execute(node, f"grep -oE 'system-reserved=[^ \"]+' {_FLAGS} || true").strip().removeprefix("system-reserved=")
    pairs = dict(part.split("=") for part in text.split(",") if "=" in part)
    return {"cpu": int(pairs.get("cpu", "0m").removesuffix("m")), "memory": int(pairs.get("memory", "0Mi").removesuffix("Mi"))}


def limit_link(engine: Engine, node: str, link: Link) -> None:
    """Shape what leaves the node. Latency needs netem where there is no rate limit; tbf's own queue holds no fixed delay.

    Raises NotPossibleError where latency is asked for and the kernel has no netem.
    """
    clear_link(engine, node)
    commands: list[str] = []
    if link.latency_ms > 0:
        rate = f" rate {link.mbit:g}mbit" if link.mbit is not None else ""
        commands = [f"tc qdisc add dev eth0 root netem delay {link.latency_ms:g}ms{rate}"]
        if "failed" in engine.execute(node, f"{{ {commands[0]}; }} 2>/dev/null || echo failed"):
            raise NotPossibleError(
                f"latency of {link.latency_ms:g} ms on {node}: this kernel has no netem. "
                "Give --mbit alone: a thin link delays what is large by itself."
            )
        return
    if link.mbit is not None:
        burst = max(16, round(link.mbit * 1000 / 8 / 100))  # what passes in 10 ms, so that the kernel's timer keeps up
        engine.execute(node, f"tc qdisc add dev eth0 root tbf rate {link.mbit:g}mbit burst {burst}kb latency 400ms")


def clear_link(engine: Engine, node: str) -> None:
    engine.execute(node, "tc qdisc del dev eth0 root 2>/dev/null || true")


def stop(engine: Engine, node: str) -> None:
    """The node is gone at once, as if its power failed."""
    engine.docker("kill", node)


def start(engine: Engine, node: str) -> None:
    """Power on again. Limits stay; link shaping does not, as after a real reboot."""
    engine.docker("start", node)


Kubectl = Callable[..., str]


def kill(kubectl: Kubectl, pod: str, program: str) -> None:
    """Kill a program inside a pod, all its processes at once, as if it had crashed. The image needs a shell and no more.

    Raises CommandError when no such program runs there.
    """
    script = f"""found=1
    for process in /proc/[0-9]*; do
      case $(readlink $process/exe) in */{program}) kill -KILL ${{process#/proc/}} && found=0 ;; esac
    done
    exit $found"""
    kubectl("exec", pod, "--", "sh", "-c", script)


def kill_pod(engine: Engine, node: str, pod: str) -> None:
    """Kill all processes of a pod's containers from outside, at once: unlike a deleted pod they cannot tidy up. The kubelet starts others.

    Raises CommandError when none of its processes runs there.
    """
    script = f"""found=1
    for process in /proc/[0-9]*; do
      tr '\\0' '\\n' < $process/environ 2>/dev/null | grep -qx HOSTNAME={pod} && kill -KILL ${{process#/proc/}} && found=0
    done
    exit $found"""
    engine.execute(node, script)


def burner(
    node: str, cores: float, free: float, image: str, *, limited: bool, pulse_seconds: float = 0.0, threads: int = 0
) -> dict[str, object]:
    """The pod of another tenant that keeps `cores` busy on `node`, and without `limited` at least those. It requests what is `free`
    to it, as tenants do: a pod that requests nothing would give way to every other. With `pulse_seconds` it works for so long, rests
    for as long, and so on. `threads`: so many at once, 0 for one on each core that it takes."""
    request = max(0.01, min(cores, free))
    limits = {"memory": "32Mi"} | ({"cpu": f"{ceil(cores * 1000)}m"} if limited else {})
    script = 'while :; do :; done & all="$all $!"; ' * (threads or ceil(cores)) + "wait"
    if pulse_seconds:
        pause = f"/bin/busybox sleep {pulse_seconds:g}"
        script = script.removesuffix("wait") + f"while {pause}; do kill -STOP $all; {pause}; kill -CONT $all; done"
    container = {
        "name": "burner",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
        "resources": {"requests": {"cpu": f"{floor(request * 1000)}m", "memory": "4Mi"}, "limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"burner-{node}", "namespace": TENANT, "labels": {"app.kubernetes.io/name": "burner"}},
        "spec": {
            "nodeName": node,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "restartPolicy": "Always",
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }


def burn(kubectl: Kubectl, node: str, cores: float, image: str, *, limited: bool, pulse_seconds: float = 0.0, threads: int = 0) -> None:
    """Start the burner on `node` and wait until it runs."""
    extinguish(kubectl, node)
    pods = json.loads(kubectl("get", "pods", "-A", "-o", "json"))["items"]
    found = json.loads(kubectl("get", "node", node, "-o", "json"))
    free = free_cores(found, pods) - min(LEFT_CORES, LEFT_SHARE * cores_of(found["status"]["allocatable"]["cpu"]))
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": TENANT}}
    pod = burner(node, cores, free, image, limited=limited, pulse_seconds=pulse_seconds, threads=threads)
    items = {"apiVersion": "v1", "kind": "List", "items": [namespace, pod]}
    kubectl("apply", "-f", "-", stdin=json.dumps(items))
    kubectl("-n", TENANT, "wait", "--for=condition=Ready", f"pod/burner-{node}", "--timeout=600s")


def free_cores(node: dict[str, Any], pods: list[dict[str, Any]]) -> float:
    """Allocatable cores of `node` less what its pods that have not ended request."""
    name = node["metadata"]["name"]
    used = sum(
        cores_of(container.get("resources", {}).get("requests", {}).get("cpu", "0"))
        for pod in pods
        if pod["spec"].get("nodeName") == name and pod["status"].get("phase") not in {"Succeeded", "Failed"}
        for container in pod["spec"]["containers"]
    )
    return cores_of(node["status"]["allocatable"]["cpu"]) - used


def cores_of(quantity: str) -> float:
    """`500m` is 0.5, `2` is 2."""
    return float(quantity.removesuffix("m")) / 1000 if quantity.endswith("m") else float(quantity)


def extinguish(kubectl: Kubectl, node: str) -> None:
    """Remove the burner from `node`; fine when there is none."""
    kubectl("-n", TENANT, "delete", "pod", f"burner-{node}", "--ignore-not-found", "--now")
