"""kind's configuration of our cluster: unequal workers, quick notice of a lost node, and, offline, a pod network without kindnet."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.settings import BLOBS_ON_NODE, MODELS_ON_NODE, TRUSTED, Settings

POD_SUBNET = "10.244.0.0/16"
SERVICE_SUBNET = "10.96.0.0/16"
LOST_AFTER = "8s"
_QUICK = {"housekeeping-interval": "2s"}  # how often cAdvisor measures; 10 s otherwise, and Prometheus would see old values
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


def pod_cidr(index: int) -> str:
    """The pods' subnet on the node with this index (0 is the control plane)."""
    return f"10.244.{index}.0/24"


def conflist(cidr: str) -> dict[str, Any]:
    """A bridge on each node; between nodes there are routes (network.py)."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": cidr}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": False, "hairpinMode": True, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}]}


def config(settings: Settings, machine: Machine, *, own_network: bool) -> dict[str, Any]:
    """kind's Cluster object."""
    init = {"kind": "InitConfiguration", "nodeRegistration": {"kubeletExtraArgs": _QUICK}}
    mounts = _mounts(settings, 0, own_network=own_network)
    nodes: list[dict[str, Any]] = [{"role": "control-plane", "kubeadmConfigPatches": [yaml.safe_dump(init)], "extraMounts": mounts}]
    for index, size in enumerate(settings.workers, start=1):
        arguments = {"system-reserved": machine.reserved(size.cores, size.memory_mib), **_QUICK}
        join = {"kind": "JoinConfiguration", "nodeRegistration": {"kubeletExtraArgs": arguments}}
        mounts = _mounts(settings, index, own_network=own_network)
        # kind hands labels to the kubelet, which may not set those that Kubernetes keeps from nodes; lifecycle.py sets them.
        own = {key: value for key, value in size.labels().items() if key != TRUSTED}
        nodes.append({"role": "worker", "labels": own, "kubeadmConfigPatches": [yaml.safe_dump(join)], "extraMounts": mounts})
    controller_manager = {"node-monitor-grace-period": LOST_AFTER, "node-monitor-period": "2s"}
    if own_network:
        controller_manager["allocate-node-cidrs"] = "false"
    patches = [
        {"kind": "ClusterConfiguration", "controllerManager": {"extraArgs": controller_manager}},
        # a lease of 8 s is renewed every 2 s: otherwise healthy nodes would look lost
        {"kind": "KubeletConfiguration", "nodeLeaseDurationSeconds": 8, "nodeStatusUpdateFrequency": "2s", "maxPods": 60},
    ]
    networking = {"podSubnet": POD_SUBNET, "serviceSubnet": SERVICE_SUBNET, "ipFamily": "ipv4", "kubeProxyMode": "iptables"}
    return {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": settings.name,
        "networking": networking | ({"disableDefaultCNI": True} if own_network else {}),
        "kubeadmConfigPatches": [yaml.safe_dump(patch) for patch in patches],
        "nodes": nodes,
    }


def _mounts(settings: Settings, index: int, *, own_network: bool) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [{"hostPath": str(settings.blobs), "containerPath": BLOBS_ON_NODE, "readOnly": True}]
    if index > 0:
        mounts.append({"hostPath": str(settings.models), "containerPath": MODELS_ON_NODE})
    if own_network:
        mounts.append({"hostPath": str(_conflist_of(settings, index)), "containerPath": _CONFLIST, "readOnly": True})
    return mounts


def _conflist_of(settings: Settings, index: int) -> Path:
    return settings.state / "pods" / f"{index}.conflist"


def write(settings: Settings, machine: Machine, *, own_network: bool) -> Path:
    """Write kind's configuration and what it mounts; returns its path."""
    for folder in (settings.state / "pods", settings.blobs, settings.models):
        folder.mkdir(parents=True, exist_ok=True)
    if own_network:
        for index in range(len(settings.workers) + 1):
            _conflist_of(settings, index).write_text(json.dumps(conflist(pod_cidr(index))))
    path = settings.state / "kind.yaml"
    path.write_text(yaml.safe_dump(config(settings, machine, own_network=own_network), sort_keys=False))
    return path
