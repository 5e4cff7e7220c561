"""The kubeconfig's own cluster in place of ours: what the demo needs of it, and a clear no to what needs our engine."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from e2e.cluster import faults
from e2e.cluster.command import run
from e2e.cluster.faults import NotPossibleError
from e2e.cluster.progress import Progress
from e2e.cluster.supplies.tools import Tool


@dataclass(frozen=True)
class CurrentCluster:
    """The cluster that the kubeconfig's context names. Images are named by `image_prefix` and must be there to be pulled; the model is the
    folder `model_path` on every node, or, when that is empty, fetched from the Hugging Face hub."""

    context: str
    image_prefix: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_IMAGE_PREFIX", "ghcr.io/splitinference"))
    image_tag: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_IMAGE_TAG", "latest"))
    prometheus_url: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_PROMETHEUS_URL", ""))
    query_set: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_QUERY_SET", "nodeExporter"))
    model_path: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_MODEL_PATH", ""))
    burner_image: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_BURNER_IMAGE", "docker.io/library/busybox:stable"))
    progress: Progress = field(default_factory=Progress)

    @staticmethod
    def here(progress: Progress | None = None) -> "CurrentCluster":
        """Raises RuntimeError when kubectl is missing or no context is current."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise RuntimeError("kubectl is not on the PATH: install it to use the kubeconfig's cluster.")
        context = run([kubectl, "config", "current-context"], check=False).strip()
        if not context:
            raise RuntimeError("The kubeconfig has no current context: choose one with `kubectl config use-context`.")
        return CurrentCluster(context, progress=progress or Progress())

    def kubectl(self, *words: str, stdin: str | None = None, check: bool = True, timeout: float | None = None) -> str:
        """`kubectl WORDS…` in this context, its stdout."""
        return run(["kubectl", "--context", self.context, *words], stdin=stdin, check=check, timeout=timeout)

    def helm(self, *words: str) -> str:
        return run(["helm", "--kube-context", self.context, *words])

    def tool(self, tool: Tool) -> str:
        """Path of kubectl or helm."""
        path = shutil.which(tool.program)
        if path is None:
            raise NotPossibleError(f"{tool.program} is not on the PATH.")
        return path

    def missing(self) -> list[str]:
        """One sentence for each thing that the demo needs here and does not have."""
        said = [f"{name} is not on the PATH: install it." for name in ("kubectl", "helm") if shutil.which(name) is None]
        if not self.prometheus_url:
            said.append("The operator moves segments by what Prometheus sees: set SPLITINFERENCE_PROMETHEUS_URL to this cluster's.")
        return said

    def load_images(self, names: Sequence[str]) -> dict[str, str]:
        """Nothing to load: the nodes pull them by these names."""
        return {name: self.image(name) for name in names}

    def burn(self, node: str) -> None:
        """A pod of another tenant keeps all cores of the node busy."""
        found = json.loads(self.kubectl("get", "node", node, "-o", "json"))
        faults.burn(self.kubectl, node, faults.cores_of(found["status"]["allocatable"]["cpu"]), self.burner_image, limited=False)

    def stop_burning(self, node: str) -> None:
        faults.extinguish(self.kubectl, node)

    def env(self) -> dict[str, str]:
        """Nothing to add: clients find the kubeconfig as they always do."""
        return {}

    def apply(self, manifest: str) -> str:
        return self.kubectl("apply", "-f", "-", stdin=manifest)

    def up(self) -> None:
        """It is up, or it is not ours to start."""
        self.kubectl("version", "--request-timeout=10s")

    def down(self) -> None:
        """Not ours to remove."""

    def image(self, name: str) -> str:
        """The name by which this cluster's nodes pull our image `name`."""
        return f"{self.image_prefix}/{name}:{self.image_tag}"

    def __getattr__(self, verb: str) -> NoReturn:
        if verb.startswith("_"):
            raise AttributeError(verb)
        raise NotPossibleError(
            f"`{verb}` needs the kind cluster (CLUSTER=kind): the cluster of context {self.context} is not ours to change."
        )
