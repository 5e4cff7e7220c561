"""The kubectl plugin as an archive, and its krew manifest: `python -m tests.plugin_archive FOLDER [URL]` writes both.

The archive has the launcher, the pure Python sources, and the pinned requirements with hashes. It is the same for every platform, and the
same bytes for the same tree.
"""

import gzip
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.release_facts import versions

ROOT = Path(__file__).parents[1]
PACKAGES = ("operator/splitinference", "operator/splitinference_modelfiles", "images/protocol/splitinference_protocol")
URL = "https://github.com/OWNER/splitinference/releases/download/v{version}/{name}"
PLATFORMS = (("linux", "amd64"), ("linux", "arm64"), ("darwin", "amd64"), ("darwin", "arm64"))


def members(version: str) -> Iterator[tuple[str, bytes, int]]:
    """Path in the archive, content and mode of each file."""
    yield "kubectl-split", (ROOT / "plugin/kubectl-split").read_bytes(), 0o755
    yield "LICENSE", (ROOT / "LICENSE").read_bytes(), 0o644
    yield "VERSION", f"{version}\n".encode(), 0o644
    yield "requirements.txt", (ROOT / "requirements-plugin.txt").read_bytes(), 0o644
    for package in PACKAGES:
        folder = ROOT / package
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                yield f"lib/{path.relative_to(folder.parent)}", path.read_bytes(), 0o644


def archive(version: str) -> bytes:
    """The archive: the same bytes each time."""
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name, content, mode in members(version):
            about = tarfile.TarInfo(name)
            about.size, about.mode = len(content), mode
            tar.addfile(about, io.BytesIO(content))
    return packed.getvalue()


def manifest(version: str, name: str, digest: str, url: str = URL) -> dict[str, Any]:
    """The krew manifest of one archive."""
    address = url.format(version=version, name=name)
    platforms = [
        {
            "selector": {"matchLabels": {"os": system, "arch": machine}},
            "uri": address,
            "sha256": digest,
            "bin": "kubectl-split",
        }
        for system, machine in PLATFORMS
    ]
    return {
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": {"name": "split"},
        "spec": {
            "version": f"v{version}",
            "homepage": "https://github.com/OWNER/splitinference",
            "shortDescription": "See and steer models served in segments",
            "description": (
                "Draws the pipelines of SplitInference resources, explains where each segment runs and why, "
                "answers proposals, drains nodes, merges logs, and finds what is missing.\n"
            ),
            "caveats": "It needs Python 3.11 or newer. The first run downloads pinned requirements with pip (about 300 MB).\n",
            "platforms": platforms,
        },
    }


def main(folder: Path, url: str = URL) -> None:
    """Write the archive and the manifest."""
    version = versions()["package"]
    name, content = f"kubectl-split-{version}.tar.gz", archive(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    made = manifest(version, name, hashlib.sha256(content).hexdigest(), url)
    (folder / "split.yaml").write_text(yaml.safe_dump(made, sort_keys=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:3])
