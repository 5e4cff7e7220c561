"""Programs built from Go modules, once per version and set of flags, into the cache.

Go's own build and module caches are used where they are; where they were not there before, they are made in the cache
folder and removed when everything is built, because they take several GB.
"""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import settings as versions
from e2e.cluster.command import run
from e2e.cluster.settings import Settings

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Module:
    """Programs of one Go module. `folder` holds its go.mod and go.sum; without it `packages` are installed as `path@version`."""

    name: str
    version: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    folder: Path | None = None
    ldflags: str = "-s -w"

    @property
    def key(self) -> str:
        sha = hashlib.sha256(repr((self.version, self.packages, self.ldflags)).encode())
        for path in sorted(path for path in self.folder.rglob("*") if path.is_file()) if self.folder else ():
            sha.update(str(path.relative_to(self.folder or path)).encode() + path.read_bytes())
        return f"{self.name}-{self.version}-{sha.hexdigest()[:10]}"

    def bin(self, cache: Path) -> Path:
        return cache / f"bin-{self.key}"

    def built(self, cache: Path) -> bool:
        return all((self.bin(cache) / program).exists() for program in self.programs)


def _kubernetes_release() -> tuple[str, str]:
    major, minor = versions.KUBERNETES.removeprefix("v").split(".")[:2]
    return major, minor


def _kubernetes_flags() -> str:
    """Without these the API server calls itself v0.0.0 and clients misbehave."""
    major, minor = _kubernetes_release()
    facts = {
        "gitVersion": versions.KUBERNETES,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z",
    }
    packages = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
    return " ".join(["-s -w", *(f"-X {package}.{name}={value}" for package in packages for name, value in facts.items())])


def _helm_flags() -> str:
    """Without these Helm takes the cluster for Kubernetes 1.20 where it does not ask it, and charts that want a newer one are refused."""
    major, minor = _kubernetes_release()
    packages = ("pkg/chart/common.k8sVersion", "pkg/chart/v2/lint/rules.k8sVersion", "internal/version.kubeClientVersion")
    facts = {f"{package}{part}": value for package in packages for part, value in (("Major", major), ("Minor", minor))}
    facts["internal/version.version"] = versions.HELM
    return " ".join(["-s -w", *(f"-X helm.sh/helm/v4/{name}={value}" for name, value in facts.items())])


_COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubeadm", "kubectl")

# One go.mod for all of these, so that what they share is compiled once: helm alone would take four times as long as after Kubernetes.
_TOGETHER = HERE / "programs"

KUBERNETES = Module(
    "kubernetes",
    versions.KUBERNETES,
    tuple(f"k8s.io/kubernetes/cmd/{name}" for name in _COMPONENTS),
    _COMPONENTS,
    _TOGETHER,
    _kubernetes_flags(),
)
ETCD = Module("etcd", versions.ETCD, ("go.etcd.io/etcd/server/v3",), ("etcd",), _TOGETHER)
COREDNS = Module("coredns", versions.COREDNS, ("./coredns",), ("coredns",), _TOGETHER)
PAUSE = Module("pause", "1", (".",), ("pause",), HERE / "pause")
KIND = Module("kind", versions.KIND, ("sigs.k8s.io/kind",), ("kind",))
KWOK = Module("kwok", versions.KWOK, ("sigs.k8s.io/kwok/cmd/kwok",), ("kwok",))
NETWORK_POLICIES = Module("network-policies", versions.NETWORK_POLICIES, ("sigs.k8s.io/kube-network-policies/cmd",), ("cmd",))
HELM = Module("helm", versions.HELM, ("helm.sh/helm/v4/cmd/helm",), ("helm",), _TOGETHER, _helm_flags())

NODE = (PAUSE, ETCD, COREDNS, KUBERNETES)
_MINIMUM = (1, 26)


def go() -> str | None:
    """The go command, if there is one that is new enough."""
    command = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if command is None:
        return None
    words = run([command, "env", "GOVERSION"], check=False, cwd=Path("/")).strip().removeprefix("go").split(".")
    try:
        return command if tuple(int(word) for word in words[:2]) >= _MINIMUM or _switches(command) else None
    except ValueError:
        return command


def _switches(command: str) -> bool:
    """Go since 1.21 fetches the toolchain that a go.mod asks for, unless told to stay local."""
    return run([command, "env", "GOTOOLCHAIN"], check=False, cwd=Path("/")).strip() not in {"", "local"}


@dataclass(frozen=True)
class Builder:
    """Builds modules into `settings.cache`, one after the other: two at once would only share the same cores."""

    settings: Settings
    go: str
    lock: threading.Lock

    @staticmethod
    def here(settings: Settings) -> "Builder":
        """Raises FileNotFoundError when there is no Go that is new enough."""
        command = go()
        if command is None:
            raise FileNotFoundError(
                f"Go {'.'.join(map(str, _MINIMUM))} or newer is needed to build the cluster's programs: install it from https://go.dev/dl."
            )
        return Builder(settings, command, threading.Lock())

    def env(self) -> dict[str, str]:
        own = self.settings.cache / "go"
        return {
            "CGO_ENABLED": "0",
            "GOFLAGS": "-buildvcs=false -modcacherw",
            **{name: str(own / name.lower()) for name in _absent_caches(self.go)},
        }

    def build(self, module: Module) -> Path:
        """The folder with the module's programs, built if they are not there."""
        with self.lock:
            target = module.bin(self.settings.cache)
            if module.built(self.settings.cache):
                return target
            part = target.with_name(f"part-{module.key}")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            flags = ["-trimpath", "-ldflags", module.ldflags]
            if module.folder is None:
                for package in module.packages:
                    self._go(module, "install", *flags, f"{package}@{module.version}", GOBIN=str(part))
            else:
                output = f"{part}/{module.programs[0]}" if len(module.programs) == 1 else f"{part}/"
                self._go(module, "build", *flags, "-o", output, *module.packages)
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            return target

    def fetch(self, module: Module) -> None:
        """Download what the module is built from, ahead: others may be compiled meanwhile."""
        if module.built(self.settings.cache):
            return
        if module.folder is None:  # a dry run, for want of a go.mod
            for package in module.packages:
                self._go(module, "install", "-n", f"{package}@{module.version}")
        else:
            self._go(module, "list", "-deps", *module.packages)

    def _go(self, module: Module, *words: str, **variables: str) -> None:
        """Run the go command where the module is to be built."""
        dry = words[0] == "list" or "-n" in words
        log = None if dry else self.settings.logs / f"{module.name}.log"
        run([self.go, *words], env=self.env() | variables, log=log, cwd=module.folder or Path("/"))

    def source(self, module: Module) -> Path:
        """The module's own source folder (for the files that kind's node base is made from)."""
        text = run([self.go, "mod", "download", "-json", f"{module.packages[0]}@{module.version}"], env=self.env(), cwd=Path("/"))
        return Path(json.loads(text)["Dir"])

    def clean(self) -> None:
        """Remove Go's caches if they are ours."""
        shutil.rmtree(self.settings.cache / "go", ignore_errors=True)


def _absent_caches(command: str) -> tuple[str, ...]:
    """Those of Go's caches that did not exist before us."""
    names = ("GOCACHE", "GOMODCACHE")
    answer: Mapping[str, str] = json.loads(run([command, "env", "-json", *names], cwd=Path("/")))
    return tuple(name for name in names if not Path(answer[name]).is_dir() or not any(Path(answer[name]).iterdir()))
