"""An API server of a test's own: etcd and kube-apiserver as processes on the loopback, without nodes, controllers or an engine.

For what must be shown on a real API server and on nothing else: preconditions, admission policies, rights, the audit log, leases.
"""

import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import urllib3
import yaml
from kubernetes import client

from e2e.cluster import Settings
from e2e.cluster.offline import gobuild
from splitinference.adapters.kubernetes.client import connect
from splitinference.cli.bench.control.control_plane import find, free_port, started, until

ADMIN = ("admin", ("system:masters",))


@dataclass
class ApiServer:
    """The server; a kubeconfig for each of its users."""

    folder: Path
    url: str
    tokens: dict[str, str] = field(default_factory=dict)

    def kubeconfig(self, user: str = "admin") -> str:
        """Path of the user's kubeconfig."""
        path = self.folder / f"{user.replace(':', '_')}.kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "certs" / "apiserver.crt")}
        context = {"cluster": "bare", "user": user, "namespace": "default"}
        content = {
            "apiVersion": "v1", "kind": "Config", "current-context": "bare",
            "clusters": [{"name": "bare", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": self.tokens[user]}}],
            "contexts": [{"name": "bare", "context": context}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        return str(path)

    def api(self, user: str = "admin") -> client.ApiClient:
        """A client for the user."""
        return connect(self.kubeconfig(user))

    @property
    def audit_log(self) -> Path:
        """Where the audit log is, if one is written."""
        return self.folder / "audit.log"


def programs() -> tuple[str, str]:
    """etcd and kube-apiserver: as the cluster harness built them, else on the PATH."""
    settings = Settings()
    etcd, server = gobuild.ETCD.bin(settings.cache), gobuild.KUBERNETES.bin(settings.cache)
    return find("etcd", etcd if etcd.exists() else None), find("kube-apiserver", server if server.exists() else None)


@contextmanager
def api_server(folder: Path, users: Mapping[str, Sequence[str]] | None = None, audit_policy: Path | None = None) -> Iterator[ApiServer]:
    """The server, until the block ends. `users`: name → groups, beside the admin."""
    etcd_program, server_program = programs()
    etcd, peer, port = (free_port() for _ in range(3))
    server = ApiServer(folder, f"https://127.0.0.1:{port}")
    lines = []
    for name, groups in {ADMIN[0]: ADMIN[1], **(users or {})}.items():
        server.tokens[name] = secrets.token_hex(16)
        lines.append(f'{server.tokens[name]},{name},{name},"{",".join(groups)}"\n')
    (folder / "tokens.csv").write_text("".join(lines))
    key = folder / "accounts.key"
    subprocess.run([find("openssl", None), "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    url = f"http://127.0.0.1:{etcd}"
    etcd_command = [
        etcd_program, f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={url}", f"--advertise-client-urls={url}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}", "--unsafe-no-fsync", "--log-level=warn",
    ]  # fmt: skip
    command = [
        server_program, f"--etcd-servers={url}", f"--cert-dir={folder / 'certs'}", "--bind-address=127.0.0.1", f"--secure-port={port}",
        f"--token-auth-file={folder / 'tokens.csv'}", "--authorization-mode=RBAC", "--service-cluster-ip-range=10.200.0.0/16",
        f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}", "--service-account-issuer=https://bare",
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition",
        "--enable-admission-plugins=OwnerReferencesPermissionEnforcement", "--endpoint-reconciler-type=none",
    ]  # fmt: skip
    if audit_policy is not None:
        command += [f"--audit-policy-file={audit_policy}", f"--audit-log-path={server.audit_log}"]
    with ExitStack() as running:
        running.enter_context(started(etcd_command, folder / "etcd.log"))
        process = running.enter_context(started(command, folder / "kube-apiserver.log"))
        until(lambda: _answers(server, process), 120, "kube-apiserver answers", folder / "kube-apiserver.log")
        yield server


def _answers(server: ApiServer, process: "subprocess.Popen[bytes]") -> bool:
    if process.poll() is not None:
        raise AssertionError(
            f"kube-apiserver ended with {process.returncode}: {(server.folder / 'kube-apiserver.log').read_text()[-2000:]}"
        )
    if not (server.folder / "certs" / "apiserver.crt").exists():
        return False
    try:
        server.api().call_api("/readyz", "GET", auth_settings=["BearerToken"], _request_timeout=3, response_type="str")
    except (client.ApiException, urllib3.exceptions.HTTPError, OSError):
        return False
    return True
