"""The Debian base image, and kind's node base on it, from Debian's packages."""

import hashlib
import os
import shutil
from pathlib import Path

from e2e.cluster.command import pipe, run
from e2e.cluster.machine.engine import Engine
from e2e.cluster.settings import KIND, OFFLINE_BASE, Settings

SUITE = "trixie"
_DOCKERFILE = Path(__file__).parent / "node-base.Dockerfile"


def build_debian(settings: Settings, engine: Engine) -> None:
    """OFFLINE_BASE in the engine: Debian's smallest, with CA certificates. Needs root and debootstrap."""
    if engine.has_image(OFFLINE_BASE):
        return
    root = settings.cache / "part-debian"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    log = settings.logs / "debian.log"
    # in namespaces of its own: what debootstrap mounts goes with it, however it ends
    apart = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
    mirror = os.environ.get("SPLITINFERENCE_DEBIAN_MIRROR", "http://deb.debian.org/debian")
    run([*apart, "debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(root), mirror], log=log)
    for leftover in (
        *(root / "var/cache/apt").glob("*.bin"),
        *(root / "var/cache/apt/archives").glob("*.deb"),
        *(root / "var/lib/apt/lists").glob("*_*"),
    ):
        leftover.unlink()
    pipe(["tar", "-C", str(root), "-c", "."], [engine.client, "import", "-", OFFLINE_BASE], env=engine.env(), log=log)
    shutil.rmtree(root)


def node_base_tag() -> str:
    """Names the node base by all that it is made from; kind's files are pinned by kind's version."""
    sha = hashlib.sha256(_DOCKERFILE.read_bytes() + SUITE.encode())
    return f"localhost/splitinference/node-base:{KIND}-{sha.hexdigest()[:12]}"


def build_node_base(settings: Settings, engine: Engine, kind_source: Path) -> str:
    """kind's node base; `kind_source` is the folder of kind's Go module. Returns the image's name."""
    files = kind_source / "images/base/files"
    tag = node_base_tag()
    if not engine.has_image(tag):
        words = ["build", "--network", "host", "--build-arg", f"BASE={OFFLINE_BASE}", "-t", tag, "-f", str(_DOCKERFILE), str(files)]
        engine.docker(*words, log=settings.logs / "node-base.log")
    return tag
