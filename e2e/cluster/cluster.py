"""The cluster as one thing: up, down, what is in it, and every change and fault."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from e2e.cluster import engine as engines
from e2e.cluster import kind, network, supply, tools
from e2e.cluster.command import run
from e2e.cluster.engine import Engine, EngineUnavailable
from e2e.cluster.progress import Progress, together
from e2e.cluster.settings import Settings


class NotUp(RuntimeError):
    """The cluster is not running; the message says how to start it."""


@dataclass(frozen=True)
class Cluster:
    """A kind cluster of our own. Methods that need it running raise NotUp when it is not."""

    settings: Settings = field(default_factory=Settings)
    progress: Progress = field(default_factory=Progress)

    # ---- life

    def up(self) -> None:
        """Make the cluster be there and ready. Quick when it is; repairs what is half there."""
        self.settings.state.mkdir(parents=True, exist_ok=True)
        engine = self._some_engine()
        parts = supply.provide(self.settings, engine, self.progress)
        if not self._healthy(engine):
            self._create(engine, parts)

    def _some_engine(self) -> Engine:
        found = engines.find(self.settings)
        if found is not None:
            return found
        packages = engines.missing_packages(("dockerd", "jq", "ip", "iptables", "unshare"))
        if packages:
            with self.progress.step(f"install {', '.join(packages)}"):
                engines.install(packages, self.settings.logs / "apt.log")
        with self.progress.step("start a private Docker engine"):
            return engines.start(self.settings)

    def _healthy(self, engine: Engine) -> bool:
        """Whether all nodes run, the API server answers, and every node is ready."""
        running = engine.docker("ps", "--format", "{{.Names}}").split()
        if not self.settings.kubeconfig.exists() or not set(self.settings.nodes()) <= set(running):
            return False
        text = self.kubectl("get", "nodes", "-o", "json", "--request-timeout=5s", check=False)
        if not text.strip():
            return False
        ready = {
            item["metadata"]["name"]
            for item in json.loads(text)["items"]
            if any(each["type"] == "Ready" and each["status"] == "True" for each in item["status"].get("conditions", []))
        }
        return ready >= set(self.settings.nodes())

    def _create(self, engine: Engine, parts: supply.Supply) -> None:
        settings = self.settings
        self._delete(engine)
        config = kind.write(settings, kind.Machine.here(), own_network=not parts.public)
        words = ["create", "cluster", "--name", settings.name, "--image", parts.node_image, "--config", str(config)]
        words += ["--kubeconfig", str(settings.kubeconfig), "--wait", "0s"]

        def nodes() -> None:
            with self.progress.step(f"create the cluster: a control plane and {len(settings.workers)} workers"):
                self._kind(engine, *words)

        def routes() -> None:
            with self.progress.step("connect the nodes' pod networks"):
                network.connect(engine, settings.nodes())

        together([nodes] if parts.public else [nodes, routes])
        with self.progress.step("wait for nodes and DNS"):
            self.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=90s")
            self.kubectl("-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")

    def down(self) -> None:
        """Remove the cluster and everything else of ours that is not in the cache. Harmless when nothing is there."""
        engine = engines.find(self.settings)
        if engine is not None:
            with self.progress.step("delete the cluster"):
                self._delete(engine)
        with self.progress.step("stop the private Docker engine"):
            engines.stop(self.settings)
        shutil.rmtree(self.settings.state, ignore_errors=True)

    def _delete(self, engine: Engine) -> None:
        names = engine.docker("ps", "-aq", "--filter", f"label=io.x-k8s.kind.cluster={self.settings.name}").split()
        if names:
            engine.docker("rm", "-f", "-v", *names)
        self.settings.kubeconfig.unlink(missing_ok=True)

    # ---- use

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, timeout: float | None = None) -> str:
        """`kubectl WORDS…` on this cluster, its stdout."""
        return run([self._tool(tools.KUBECTL), *words], env=self.env(), stdin=stdin, check=check, timeout=timeout)

    def env(self) -> dict[str, str]:
        """Environment for kubectl, helm and Kubernetes clients."""
        return {"KUBECONFIG": str(self.settings.kubeconfig)}

    def _tool(self, tool: tools.Tool) -> str:
        path = tool.find(self.settings)
        if path is None:
            raise NotUp(f"{tool.program} is not there yet: run `python -m e2e.cluster up`.")
        return path

    def _kind(self, engine: Engine, *words: str) -> str:
        folder = Path(engine.client).parent  # kind calls the first docker on the PATH
        env = engine.env() | {"PATH": f"{folder}:{os.environ.get('PATH', '')}"}
        return run([self._tool(tools.KIND), *words], env=env, log=self.settings.logs / "kind.log")
