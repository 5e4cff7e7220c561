"""NetworkPolicies of a resource, enforced: real packets between pods that are network namespaces, judged by kube-network-policies.

An API server runs in the namespace that stands for the node. What is forwarded between pods goes through a queue of netfilter to the
program, which looks up pods, namespaces and policies as it does in a cluster. Needs root, `ip` and `iptables`.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from e2e.cluster import Settings as Harness
from e2e.cluster.offline import gobuild
from splitinference.adapters.kubernetes.client import KubeCluster, connect
from splitinference.cli.bench.control.control_plane import control_plane, started, until
from splitinference.controller.manifests.segment import Manifests
from splitinference.settings import Settings
from tests.controller.manifests.built import OPERATOR, a_profile, a_resource, pod_labels
from tests.controller.objects import parsed

pytestmark = pytest.mark.long

_NODE = f"si-np-{os.getpid()}"
_CLONE_NEWNET = 0x40000000
_QUEUE = "100"
_PORTS = (8000, 8001, 8002, 8003, 8080, 8444, 9090)

PODS: dict[str, tuple[str, dict[str, str]]] = {
    "segment": ("team", pod_labels("segment")),
    "next-segment": ("team", pod_labels("segment")),
    "gateway": ("team", pod_labels("gateway")),
    "stranger": ("team", {}),
    "other-gateway": ("team", pod_labels("gateway", "other")),
    "impostor": ("elsewhere", pod_labels("gateway")),
    "false-operator": ("elsewhere", OPERATOR),
    "operator": ("splitinference-system", OPERATOR),
    "prometheus": ("monitoring", {}),
}
"""Each with its namespace and labels."""

_LISTEN = """
import socket, sys, threading
def serve(port):
    with socket.create_server(("0.0.0.0", port)) as server:
        while True:
            server.accept()[0].close()
for port in map(int, sys.argv[1:]):
    threading.Thread(target=serve, args=(port,), daemon=True).start()
sys.stdin.read()
"""
_CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3])).close()
except TimeoutError:
    sys.exit(3)
"""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=20)


def _in(namespace: str, *words: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *words]


@contextmanager
def _entered(namespace: str) -> Iterator[None]:
    """This thread, and what it starts, is in the network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net") as before, open(f"/run/netns/{namespace}") as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        try:
            yield
        finally:
            libc.setns(before.fileno(), _CLONE_NEWNET)


@contextmanager
def _hosts() -> Iterator[dict[str, str]]:
    """The node's namespace and one for each pod, each with a cable to the node and a route through it. Gives the pods' addresses."""
    with ExitStack() as stack:

        def made(name: str) -> None:
            _ip("netns", "add", name)
            stack.callback(subprocess.run, ["ip", "netns", "del", name], capture_output=True, check=False)
            _ip("-n", name, "link", "set", "lo", "up")

        made(_NODE)
        # Where a way out of the node would be: the API server asks for one, to know its own address.
        _ip("-n", _NODE, "link", "add", "uplink", "type", "veth", "peer", "name", "nowhere")
        _ip("-n", _NODE, "address", "add", "10.213.8.1/24", "dev", "uplink")
        for end in ("uplink", "nowhere"):
            _ip("-n", _NODE, "link", "set", end, "up")
        _ip("-n", _NODE, "route", "add", "default", "via", "10.213.8.2")
        subprocess.run(_in(_NODE, "sysctl", "-qw", "net.ipv4.ip_forward=1"), check=True, timeout=20)
        rule = ["-A", "FORWARD", "-m", "conntrack", "--ctstate", "NEW", "-j", "NFQUEUE", "--queue-num", _QUEUE]
        subprocess.run(_in(_NODE, "iptables", *rule), check=True, capture_output=True, timeout=20)
        addresses = {name: f"10.213.9.{number}" for number, name in enumerate(PODS, start=2)}
        for number, address in enumerate(addresses.values()):
            pod = f"{_NODE}-{number}"
            made(pod)
            _ip("-n", _NODE, "link", "add", f"pod{number}", "type", "veth", "peer", "name", "eth0", "netns", pod)
            _ip("-n", _NODE, "address", "add", "169.254.1.1/32", "dev", f"pod{number}")
            _ip("-n", _NODE, "link", "set", f"pod{number}", "up")
            _ip("-n", _NODE, "route", "add", f"{address}/32", "dev", f"pod{number}")
            _ip("-n", pod, "address", "add", f"{address}/32", "dev", "eth0")
            _ip("-n", pod, "link", "set", "eth0", "up")
            _ip("-n", pod, "route", "add", "169.254.1.1/32", "dev", "eth0")
            _ip("-n", pod, "route", "add", "default", "via", "169.254.1.1")
            listening = subprocess.Popen(
                _in(pod, sys.executable, "-c", _LISTEN, *map(str, _PORTS)), stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            stack.callback(_ended, listening)
        yield addresses


def _ended(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)


def _announce(api: client.ApiClient, addresses: dict[str, str]) -> None:
    """Namespaces and pods, as kubelets would have them."""
    core = client.CoreV1Api(api)
    for namespace in sorted({namespace for namespace, _ in PODS.values()}):
        core.create_namespace({"metadata": {"name": namespace}})
    for name, (namespace, labels) in PODS.items():
        spec = {"nodeName": "node", "containers": [{"name": "main", "image": "none"}]}
        core.create_namespaced_pod(namespace, {"metadata": {"name": name, "labels": labels}, "spec": spec})
        status = {"phase": "Running", "podIP": addresses[name], "podIPs": [{"ip": addresses[name]}]}
        core.patch_namespaced_pod_status(name, namespace, {"status": status})


@contextmanager
def _enforced(program: Path, kubeconfig: Path, folder: Path) -> Iterator[Callable[[], bool]]:
    """kube-network-policies, which believes that it runs in a pod. Gives whether it lives."""
    read = yaml.safe_load(kubeconfig.read_text())
    cluster, token = read["clusters"][0]["cluster"], read["users"][0]["user"]["token"]
    account = folder / "account"
    account.mkdir()
    (account / "token").write_text(token)
    (account / "ca.crt").write_bytes(Path(cluster["certificate-authority"]).read_bytes())
    host, _, port = cluster["server"].removeprefix("https://").partition(":")
    there = "/run/secrets/kubernetes.io/serviceaccount"
    script = f'mount -t tmpfs none /run && mkdir -p {there} && cp "$0"/* {there} && exec "$@"'
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        script,
        str(account),
        str(program),
        "--hostname-override=node",
        f"--nfqueue-id={_QUEUE}",
        "-v=2",
    ]
    env = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
    with started(command, folder / "policies.log", env) as process:
        yield lambda: process.poll() is None


class Network:
    """Connections from pod to pod."""

    def __init__(self, addresses: dict[str, str]) -> None:
        self._addresses = addresses
        self._names = list(addresses)

    def tried(self, who: str, whom: str, port: int, seconds: float) -> bool:
        """Whether a connection comes about."""
        pod = f"{_NODE}-{self._names.index(who)}"
        words = _in(pod, sys.executable, "-c", _CONNECT, self._addresses[whom], str(port), str(seconds))
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=seconds + 60)
        assert done.returncode in (0, 3), done.stderr
        return done.returncode == 0

    def all_pass(self, connections: Sequence[tuple[str, str, int]]) -> bool:
        """Whether each of them comes about, with much time for it."""
        return all(self.tried(*each, seconds=20) for each in connections)


ALLOWED = [
    ("gateway", "segment", 8003),
    ("next-segment", "segment", 8003),
    ("operator", "segment", 8003),
    ("prometheus", "segment", 8002),
    ("stranger", "gateway", 8080),
    ("impostor", "gateway", 8001),
    ("operator", "gateway", 8444),
    ("prometheus", "gateway", 9090),
]
DENIED = [
    ("stranger", "segment", 8003),
    ("other-gateway", "segment", 8003),
    ("impostor", "segment", 8003),
    ("false-operator", "segment", 8003),
    ("prometheus", "segment", 8003),
    ("stranger", "segment", 8002),
    ("gateway", "segment", 8000),
    ("gateway", "segment", 8001),
    ("segment", "gateway", 8444),
    ("stranger", "gateway", 8444),
    ("false-operator", "gateway", 8444),
    ("prometheus", "gateway", 8444),
    ("stranger", "gateway", 9090),
    ("operator", "gateway", 9090),
]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A control plane and kube-network-policies, built once from the Go module proxy."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "iptables", "unshare"))):
        pytest.skip("needs root, ip, iptables and unshare")
    folder = tmp_path / "programs"
    folder.mkdir()
    settings = Harness()
    for module in (gobuild.ETCD, gobuild.KUBERNETES, gobuild.NETWORK_POLICIES):
        for program in gobuild.Builder.here(settings).build(module).iterdir():
            (folder / program.name).symlink_to(program)
    return folder


def test_only_those_who_need_to_reach_segments_and_gateways(programs: Path, tmp_path: Path):
    with _hosts() as addresses, _entered(_NODE), control_plane(programs, tmp_path) as kubeconfig:
        api = connect(str(kubeconfig))
        _announce(api, addresses)
        cluster, network = KubeCluster(api, 10.0), Network(addresses)
        body: dict[str, Any] = a_resource()
        policies = [obj for obj in Manifests(Settings()).gateway(parsed(body), a_profile()) if obj["kind"] == "NetworkPolicy"]
        assert len(policies) == 2
        with _enforced(programs / "cmd", kubeconfig, tmp_path) as lives:
            log = tmp_path / "policies.log"
            # Without policies all is open: what is denied later is denied by them. Until the program listens nothing passes.
            until(lambda: network.tried("stranger", "segment", 8003, 1), 120, "the queue is served", log)
            assert network.all_pass([*ALLOWED, *DENIED])
            for policy in policies:
                cluster.apply(policy)
            until(lambda: not network.tried("stranger", "segment", 8003, 1), 120, "the segments' policy is enforced", log)
            until(lambda: not network.tried("stranger", "gateway", 9090, 1), 120, "the gateway's policy is enforced", log)
            passed = [each for each in DENIED if network.tried(*each, seconds=2)]
            assert passed == []
            assert [each for each in ALLOWED if not network.tried(*each, seconds=20)] == []
            assert lives(), log.read_text()
