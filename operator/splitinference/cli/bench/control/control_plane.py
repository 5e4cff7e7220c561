"""A control plane of its own for `bench operator`: API server, etcd, scheduler and controllers as processes, and kwok's pretend kubelets.

All of it lives in one folder and in processes that end with the block. The API server listens on the loopback only.
"""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import urllib3
import yaml
from kubernetes import client

from splitinference.adapters.kubernetes.client import connect

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
POD_ADDRESS = "127.8.0.1"
"""All pretend pods have this address, where one server answers for them: any of 127.0.0.0/8 is this machine."""
FAKE = "kwok.x-k8s.io/node"
"""Annotation, and taint, of the nodes that kwok plays."""

# A kubelet writes its node's status every five minutes when nothing changes; that it lives is in the lease, which kwok renews.
_STAGES = f"""
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: node-beats}}
spec:
  resourceRef: {{apiGroup: v1, kind: Node}}
  selector:
    matchExpressions:
      - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
  delay: {{durationMilliseconds: 240000, jitterDurationMilliseconds: 300000}}
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      conditions:
      {{{{ range .status.conditions }}}}
        - type: {{{{ .type | Quote }}}}
          status: {{{{ .status | Quote }}}}
          reason: {{{{ .reason | Quote }}}}
          lastHeartbeatTime: {{{{ $now | Quote }}}}
      {{{{ end }}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-runs}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
      - {{key: .metadata.deletionTimestamp, operator: DoesNotExist}}
      - {{key: .status.phase, operator: In, values: [Pending]}}
  next:
    statusTemplate: |
      {{{{ $now := Now }}}}
      phase: Running
      startTime: {{{{ $now | Quote }}}}
      podIP: {POD_ADDRESS}
      podIPs: [{{ip: {POD_ADDRESS}}}]
      conditions:
        - {{type: Initialized, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
        - {{type: ContainersReady, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
        - {{type: Ready, status: "True", lastTransitionTime: {{{{ $now | Quote }}}}}}
      containerStatuses:
      {{{{ range .spec.containers }}}}
        - name: {{{{ .name | Quote }}}}
          image: {{{{ .image | Quote }}}}
          imageID: ""
          ready: true
          restartCount: 0
          state: {{running: {{startedAt: {{{{ $now | Quote }}}}}}}}
      {{{{ end }}}}
---
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {{name: pod-goes}}
spec:
  resourceRef: {{apiGroup: v1, kind: Pod}}
  selector:
    matchExpressions:
      - {{key: .metadata.deletionTimestamp, operator: Exists}}
  next: {{delete: true}}
"""


class NotStartedError(Exception):
    """A program is missing, or did not start; the message says which, and its last words."""


def find(program: str, folder: Path | None) -> str:
    """The program in the folder, else on the PATH. Raises NotStartedError."""
    found = shutil.which(program, path=str(folder)) if folder else None
    if found is None and (found := shutil.which(program)) is None:
        raise NotStartedError(f"{program} is neither in --programs nor on the PATH")
    return found


@contextmanager
def started(command: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=None if env is None else {**os.environ, **env})
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def control_plane(programs: Path | None, folder: Path) -> Iterator[Path]:
    """The kubeconfig of a new, empty control plane. Raises NotStartedError."""
    paths = {name: find(name, programs) for name in PROGRAMS}
    etcd, etcd_peer, api = (free_port() for _ in range(3))
    token, kubeconfig, key = secrets.token_hex(16), folder / "kubeconfig", folder / "accounts.key"
    (folder / "tokens.csv").write_text(f"{token},bench,bench,system:masters\n")
    subprocess.run([find("openssl", None), "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"https://127.0.0.1:{api}", folder / "certs" / "apiserver.crt", token)))
    url = f"http://127.0.0.1:{etcd}"
    commands = {
        "etcd": [
            f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://127.0.0.1:{etcd_peer}", "--unsafe-no-fsync", "--log-level=warn",
        ],
        "kube-apiserver": [
            f"--etcd-servers={url}", f"--cert-dir={folder / 'certs'}", "--bind-address=127.0.0.1", f"--secure-port={api}",
            f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.200.0.0/16",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}", "--service-account-issuer=https://bench",
            "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition", "--endpoint-reconciler-type=none",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={kubeconfig}", "--controllers=deployment,replicaset", "--leader-elect=false", "--secure-port=0",
            "--kube-api-qps=200", "--kube-api-burst=200",
        ],
        "kube-scheduler": [
            f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=200",
        ],
    }  # fmt: skip
    with ExitStack() as running:
        for name in PROGRAMS:
            log = folder / f"{name}.log"
            process = running.enter_context(started([paths[name], *commands[name]], log))
            if name == "kube-apiserver":
                until(partial(_answers, kubeconfig, process), 90, f"{name} answers", log)
        yield kubeconfig


@contextmanager
def pretend_kubelets(programs: Path | None, kubeconfig: Path, folder: Path) -> Iterator[None]:
    """kwok keeps the nodes with its annotation alive and runs their pods, until the block ends."""
    stages = folder / "stages.yaml"
    stages.write_text(_STAGES)
    command = [
        find("kwok", programs), f"--kubeconfig={kubeconfig}", f"--config={stages}", "--manage-all-nodes=false",
        f"--manage-nodes-with-annotation-selector={FAKE}=fake", f"--server-address=127.0.0.1:{free_port()}",
    ]  # fmt: skip
    with started(command, folder / "kwok.log"):
        yield


def until(holds: Callable[[], bool], seconds: float, what: str, log: Path | None = None) -> float:
    """Wait; the seconds that it took. Raises NotStartedError with the log's end when it takes too long."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > seconds:
            words = "".join(f"\n  {line}" for line in log.read_text(errors="replace").splitlines()[-8:]) if log else ""
            raise NotStartedError(f"{what}: not within {seconds:g} s{words}")
        time.sleep(0.2)
    return time.monotonic() - began


def free_port() -> int:
    """A port of the loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _answers(kubeconfig: Path, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise NotStartedError(f"kube-apiserver ended with exit status {process.returncode}; its log is beside {kubeconfig}")
    if not (kubeconfig.parent / "certs" / "apiserver.crt").exists():
        return False  # it signs its own certificate when it starts
    try:
        connect(str(kubeconfig)).call_api("/readyz", "GET", auth_settings=["BearerToken"], _request_timeout=3, response_type="str")
    except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
        return False
    return True


def _kubeconfig(server: str, certificate: Path, token: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "bench", "cluster": {"server": server, "certificate-authority": str(certificate)}}],
        "users": [{"name": "bench", "user": {"token": token}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench", "namespace": "bench"}}],
        "current-context": "bench",
    }
