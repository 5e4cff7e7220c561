"""The kubeconfig's own cluster in place of ours: what the demo needs of it, and a clear no to what needs our engine."""

import os
import shutil
from dataclasses import dataclass, field
from typing import NoReturn

from e2e.cluster.command import run
from e2e.cluster.faults import NotPossible
from e2e.cluster.progress import Progress


@dataclass(frozen=True)
class CurrentCluster:
    """The cluster that the kubeconfig's context names. Images are named by `image_prefix` and must be there to be pulled."""

    context: str
    image_prefix: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_IMAGE_PREFIX", "ghcr.io/splitinference"))
    image_tag: str = field(default_factory=lambda: os.environ.get("SPLITINFERENCE_IMAGE_TAG", "latest"))
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
        raise NotPossible(f"`{verb}` needs the kind cluster (CLUSTER=kind): the cluster of context {self.context} is not ours to change.")
