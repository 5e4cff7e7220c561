"""kind, kubectl and helm: what is on the PATH where it suits, else what was built into the cache."""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from e2e.cluster.command import run
from e2e.cluster.offline import gobuild
from e2e.cluster.settings import KUBERNETES, Settings

Version = tuple[int, int]


@dataclass(frozen=True)
class Tool:
    """A program, the module to build it from, and which versions on the PATH will do."""

    program: str
    module: gobuild.Module
    ask: tuple[str, ...]
    suits: Callable[[Version], bool]

    def find(self, settings: Settings) -> str | None:
        """Its path. The built one wins: everything was tried with its version."""
        built = self.module.bin(settings.cache) / self.program
        if built.exists():
            return str(built)
        path = shutil.which(self.program)
        if path is None:
            return None
        version = first_version(run([path, *self.ask], check=False, timeout=20))
        return path if version is not None and self.suits(version) else None


def first_version(text: str) -> Version | None:
    """Major and minor of the first `v1.2…` or `1.2.3` in what a program says of itself."""
    found = re.search(r"v?(\d+)\.(\d+)\.\d+", text)
    return (int(found[1]), int(found[2])) if found else None


def _kubernetes_minor() -> int:
    return int(KUBERNETES.split(".")[1])


KIND = Tool("kind", gobuild.KIND, ("version",), lambda v: v >= (0, 27))
KUBECTL = Tool("kubectl", gobuild.KUBERNETES, ("version", "--client"), lambda v: v[0] == 1 and abs(v[1] - _kubernetes_minor()) <= 1)
HELM = Tool("helm", gobuild.HELM, ("version", "--short"), lambda v: v >= (3, 17))
ALL = (KIND, KUBECTL, HELM)
