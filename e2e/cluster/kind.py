"""kind's configuration of our cluster: unequal workers, a control plane that takes little and has patience, and, offline, a pod network
without kindnet.

The machine may be small and busy. A control plane that is restarted because a probe timed out resets all connections, so probes wait long.
There is one of each program, so nobody elects a leader, and no lease can be lost. What is asked or measured periodically, is so often only
as the tests need.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.settings import BLOBS_ON_NODE, MODELS_ON_NODE, TRUSTED, Settings

POD_SUBNET = "10.244.0.0/16"
SERVICE_SUBNET = "10.96.0.0/16"
SUBNETS = {"ipv4": (POD_SUBNET, SERVICE_SUBNET), "ipv6": ("fd00:10:244::/56", "fd00:10:96::/112")}
"""Of pods and of Services, by family."""
LOST_AFTER_SECONDS = 20
_LEASE_SECONDS = 20  # renewed every quarter of it, so a node must be late four times to look lost
_MEASURE = {"housekeeping-interval": "5s"}  # of cAdvisor, as often as Prometheus asks; 10 s otherwise
_PATCHES = "/kind/splitinference-patches"
_PROBED = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd")
_START_MINUTES = 20  # for a control plane to begin to answer
_CONFLIST = "/etc/cni/net.d/10-pods.conflist"


@dataclass(frozen=True)
class Machine:
    """What the kubelets see: they report the whole machine, and we reserve all but a node's share of it."""

    cores: int
    memory_mib: int

    @staticmethod
    def here() -> "Machine":
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return Machine(os.cpu_count() or 1, pages // 2**20)

    def reserved(self, cores: float, memory_mib: int) -> str:
        """The kubelet's system-reserved, so that so much is allocatable."""
        return f"cpu={max(0, round((self.cores - cores) * 1000))}m,memory={max(0, self.memory_mib - memory_mib)}Mi"


def pod_cidr(index: int, family: str = "ipv4") -> str:
    """The pods' subnet on the node with this index (0 is the control plane)."""
    return f"10.244.{index}.0/24" if family == "ipv4" else f"fd00:10:244:{index:x}::/64"


def conflist(*cidrs: str) -> dict[str, Any]:
    """A bridge on each node; between nodes there are routes (network.py). Pods have an address of each of these subnets and no other."""
    anywhere = [{"dst": "::/0" if ":" in cidr else "0.0.0.0/0"} for cidr in cidrs]
    ipam = {"type": "host-local", "ranges": [[{"subnet": cidr}] for cidr in cidrs], "routes": anywhere}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}


def config(settings: Settings, machine: Machine, *, own_network: bool) -> dict[str, Any]:
    """kind's Cluster object."""
    init = {"kind": "InitConfiguration", "patches": {"directory": _PATCHES}}
    mounts = _mounts(settings, 0, own_network=own_network)
    nodes: list[dict[str, Any]] = [{"role": "control-plane", "kubeadmConfigPatches": [yaml.safe_dump(init)], "extraMounts": mounts}]
    for index, size in enumerate(settings.workers, start=1):
        arguments = {"system-reserved": machine.reserved(size.cores, size.memory_mib), **_MEASURE}
        join = {"kind": "JoinConfiguration", "nodeRegistration": {"kubeletExtraArgs": arguments}}
        mounts = _mounts(settings, index, own_network=own_network)
        # kind hands labels to the kubelet, which may not set those that Kubernetes keeps from nodes; lifecycle.py sets them.
        own = {key: value for key, value in size.labels().items() if key != TRUSTED}
        nodes.append({"role": "worker", "labels": own, "kubeadmConfigPatches": [yaml.safe_dump(join)], "extraMounts": mounts})
    alone = {"leader-elect": "false"}
    controller_manager = {"node-monitor-grace-period": f"{LOST_AFTER_SECONDS}s", **alone}
    if own_network:
        controller_manager["allocate-node-cidrs"] = "false"
    patches = [
        {
            "kind": "ClusterConfiguration",
            "apiServer": {"timeoutForControlPlane": f"{_START_MINUTES}m"},
            "controllerManager": {"extraArgs": controller_manager},
            "scheduler": {"extraArgs": alone},
            # the cluster is thrown away, so nothing waits for the disk; and one member has nobody to hear from
            "etcd": {"local": {"extraArgs": {"unsafe-no-fsync": "true", "heartbeat-interval": "500", "election-timeout": "5000"}}},
        },
        {"kind": "KubeletConfiguration", "nodeLeaseDurationSeconds": _LEASE_SECONDS, "nodeStatusUpdateFrequency": "10s", "maxPods": 60},
    ]
    pods, services = (",".join(subnets) for subnets in zip(*(SUBNETS[family] for family in settings.families), strict=True))
    networking = {"podSubnet": pods, "serviceSubnet": services, "ipFamily": settings.family, "kubeProxyMode": "iptables"}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": settings.name,
        "networking": networking | ({"disableDefaultCNI": True} if own_network else {}),
        "kubeadmConfigPatches": [yaml.safe_dump(patch) for patch in patches],
        "nodes": nodes,
    }


def patient(program: str) -> dict[str, Any]:
    """kubeadm's patch for a static pod: its probes wait for a busy machine, and ask less often than every second."""
    answer = {"timeoutSeconds": 60}
    probes = {
        "startupProbe": {**answer, "periodSeconds": 10, "failureThreshold": 6 * _START_MINUTES},
        "livenessProbe": {**answer, "periodSeconds": 30, "failureThreshold": 20},
    }
    if program != "kube-controller-manager":  # kubeadm gives it none, and a probe without a question is not valid
        probes["readinessProbe"] = {**answer, "periodSeconds": 10, "failureThreshold": 6}
    return {"spec": {"containers": [{"name": program, **probes}]}}


def _mounts(settings: Settings, index: int, *, own_network: bool) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"hostPath": str(settings.blobs), "containerPath": BLOBS_ON_NODE, "readOnly": True}]
    if index == 0:
        mounts.append({"hostPath": str(settings.state / "patches"), "containerPath": _PATCHES, "readOnly": True})
    else:
        mounts.append({"hostPath": str(settings.models), "containerPath": MODELS_ON_NODE})
    if own_network:
        mounts.append({"hostPath": str(_conflist_of(settings, index)), "containerPath": _CONFLIST, "readOnly": True})
    return mounts


def _conflist_of(settings: Settings, index: int) -> Path:
    return settings.state / "pods" / f"{index}.conflist"


def write(settings: Settings, machine: Machine, *, own_network: bool) -> Path:
    """Write kind's configuration and what it mounts; returns its path."""
    patches = settings.state / "patches"
    for folder in (settings.state / "pods", patches, settings.blobs, settings.models):
        folder.mkdir(parents=True, exist_ok=True)
    for program in _PROBED:
        (patches / f"{program}+strategic.yaml").write_text(yaml.safe_dump(patient(program)))
    if own_network:
        for index in range(len(settings.workers) + 1):
            _conflist_of(settings, index).write_text(json.dumps(conflist(*(pod_cidr(index, family) for family in settings.families))))
    path = settings.state / "kind.yaml"
    path.write_text(yaml.safe_dump(config(settings, machine, own_network=own_network), sort_keys=False))
    return path
