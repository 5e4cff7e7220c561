"""The release before this tree: its chart and its images, from git, brought onto the same cluster by that tree's own harness.

PREVIOUS_RELEASE names it, as a tag or a commit. Without it: the newest tag `v…` before this commit.
As long as there is no tag: LAST_CHECKED, the newest commit before this tree on which all of `.ci/run` passed.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.stack import SYSTEM

RELEASE = "splitinference"
CRD = "splitinferences.splitinference.dev"

LAST_CHECKED = "03636cefddca"
"""Its chart still has the CRD in the folder `crds/`, so this upgrade also takes over the CRD."""
_INSTALL = """
import json, os
from e2e import stack
from e2e.cluster import Cluster, Settings
cluster = Cluster(Settings(name=os.environ["E2E_NAME"]))
images = cluster.load_images(stack.IMAGES)
stack.install_operator(cluster, images)
print(json.dumps(images))
"""


@dataclass(frozen=True)
class Before:
    """A tree of the release before."""

    revision: str
    tree: Path

    @property
    def crds(self) -> Path | None:
        """The folder of a CRD that Helm installs and never touches again; None where the CRD is a template of the chart."""
        folder = self.tree / "charts/splitinference/crds"
        return folder if folder.is_dir() else None

    def roll_back(self, cluster: Cluster, revision: str) -> None:
        """To this revision of the release, as docs/how-to/upgrade.md says: its CRD first where Helm would leave it as it is."""
        if self.crds is not None:
            cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(self.crds))
        cluster.helm("rollback", RELEASE, revision, "-n", SYSTEM)

    def install(self, cluster: Cluster) -> dict[str, str]:
        """Its images and its chart, on the cluster; the images' names. What is there of this tree goes first: Helm leaves a newer CRD
        as it is, whose defaults that release does not know."""
        if cluster.kubectl("get", "crd", CRD, "--ignore-not-found", "-o", "name").strip():
            cluster.kubectl("delete", "si", "--all", "--all-namespaces", "--timeout=600s")
            cluster.helm("uninstall", RELEASE, "-n", SYSTEM, "--ignore-not-found", "--wait")
            cluster.kubectl("delete", "crd", CRD, "--timeout=600s")
        environment = {
            **os.environ,
            "E2E_NAME": cluster.settings.name,
            "PYTHONPATH": f"{self.tree}:{self.tree}/operator:{self.tree}/images/protocol",
        }
        done = subprocess.run([sys.executable, "-c", _INSTALL], cwd=self.tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.revision} cannot be installed:\n{done.stderr[-3000:]}")
        found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
        return found


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(REPOSITORY), *words], capture_output=True, text=True, check=True).stdout.strip()


def revision() -> str:
    """Which commit is the release before."""
    if given := os.environ.get("PREVIOUS_RELEASE"):
        return _git("rev-parse", f"{given}^{{commit}}")
    try:
        tag = _git("describe", "--tags", "--match", "v*", "--abbrev=0", "HEAD^")
    except subprocess.CalledProcessError:
        return _git("rev-parse", f"{LAST_CHECKED}^{{commit}}")
    return _git("rev-parse", f"{tag}^{{commit}}")


@contextmanager
def release_before() -> Iterator[Before]:
    """Its tree, until the block ends."""
    commit = revision()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        _git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield Before(commit, tree)
        finally:
            _git("worktree", "remove", "--force", str(tree))
