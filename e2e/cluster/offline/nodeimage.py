"""kind's node image with Kubernetes' own images in it, as kubeadm and kind's containerd name them."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from e2e.cluster import settings as versions
from e2e.cluster.machine.capabilities import missing_here, runtime_script
from e2e.cluster.machine.engine import Engine
from e2e.cluster.offline import gobuild
from e2e.cluster.offline.base import node_base_tag
from e2e.cluster.settings import Settings
from e2e.cluster.supplies.oci import Blobs, Descriptor, Image

_HERE = Path(__file__).parent
_REGISTRY = "registry.k8s.io"
_CONTENT = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"
_LAYOUT = 1  # to be raised when this module puts an image together otherwise
_STORAGE = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard"},
    "provisioner": "kubernetes.io/no-provisioner",
}


def tag() -> str:
    """Names the node image by all that it is made from."""
    sha = hashlib.sha256(node_base_tag().encode())
    for module in gobuild.NODE:
        sha.update(module.key.encode())
    for path in sorted(_HERE.glob("*.Dockerfile")):
        sha.update(path.read_bytes())
    sha.update(repr((_LAYOUT, missing_here(), runtime_script("runc", ("",)), _STORAGE)).encode())
    return f"localhost/splitinference/node:{versions.KUBERNETES}-{sha.hexdigest()[:12]}"


def build(settings: Settings, engine: Engine, node_base: str) -> str:
    """The node image, from binaries that gobuild made. Returns its name."""
    name = tag()
    if engine.has_image(name):
        return name
    work = settings.cache / "part-node"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = settings.logs / "node-image.log"
    binaries = gobuild.KUBERNETES.bin(settings.cache)
    context = work / "context"
    context.mkdir()
    for program in ("kubeadm", "kubelet", "kubectl"):
        (context / program).hardlink_to(binaries / program)
    (context / "storage.yaml").write_text(json.dumps(_STORAGE))
    if without := missing_here():
        (context / "runtime").write_text(runtime_script("/usr/sbin/runc.real", without))
    plain = f"{name}-plain"
    arguments = ["--build-arg", f"BASE={node_base}", "--build-arg", f"VERSION={versions.KUBERNETES}"]
    engine.docker("build", "--network", "none", *arguments, "-t", plain, "-f", str(_HERE / "node.Dockerfile"), str(context), log=log)
    archive = _component_archive(settings, engine, node_base, Blobs(work / "blobs"))
    _put_in(engine, plain, name, archive, f"{settings.name}-building")
    engine.docker("rmi", plain)
    shutil.rmtree(work)
    return name


def _component_archive(settings: Settings, engine: Engine, node_base: str, blobs: Blobs) -> bytes:
    cache = settings.cache
    kubernetes = gobuild.KUBERNETES.bin(cache)
    images: dict[str, Image] = {}
    for program in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
        images[f"{_REGISTRY}/{program}:{versions.KUBERNETES}"] = blobs.put_image(
            [blobs.put_layer({f"/usr/local/bin/{program}": kubernetes / program})]
        )
    etcd = blobs.put_layer({"/usr/local/bin/etcd": gobuild.ETCD.bin(cache) / "etcd"})
    images[f"{_REGISTRY}/etcd:{_pinned('etcd')}"] = blobs.put_image([etcd])
    coredns = blobs.put_layer({"/coredns": gobuild.COREDNS.bin(cache) / "coredns"})
    images[f"{_REGISTRY}/coredns/coredns:{_pinned('coredns')}"] = blobs.put_image([coredns], ["/coredns"])
    pause = blobs.put_image([blobs.put_layer({"/pause": gobuild.PAUSE.bin(cache) / "pause"})], ["/pause"])
    for version in ("3.10", _pinned("pause")):  # kind's containerd names one, kubeadm the other
        images[f"{_REGISTRY}/pause:{version}"] = pause
    proxy = blobs.put_layer({"/usr/local/bin/kube-proxy": kubernetes / "kube-proxy"})
    tools = _iptables_layer(settings, engine, node_base, blobs)
    images[f"{_REGISTRY}/kube-proxy:{versions.KUBERNETES}"] = blobs.put_image([tools, proxy], ["/usr/local/bin/kube-proxy"])
    return blobs.archive(images, layers=True)


def _pinned(image: str) -> str:
    """The tag that kubeadm of versions.KUBERNETES asks for, whatever version is really in it."""
    return {"etcd": "3.6.5-0", "coredns": "v1.12.1", "pause": "3.10.1"}[image]


def _iptables_layer(settings: Settings, engine: Engine, node_base: str, blobs: Blobs) -> Descriptor:
    name = "localhost/splitinference/iptables:building"
    words = [
        "build",
        "--network",
        "none",
        "--build-arg",
        f"BASE={node_base}",
        "-t",
        name,
        "-f",
        str(_HERE / "iptables.Dockerfile"),
        str(_HERE / "pause"),
    ]
    engine.docker(*words, log=settings.logs / "node-image.log")
    with subprocess.Popen([engine.client, "save", name], env={**os.environ, **engine.env()}, stdout=subprocess.PIPE) as saving:
        assert saving.stdout is not None
        image = blobs.take_docker_archive(saving.stdout)
    engine.docker("rmi", name)
    (layer,) = image.layers
    return layer


def _put_in(engine: Engine, plain: str, name: str, archive: bytes, container: str) -> None:
    """Import `archive` into a container of `plain` and make an image of it.

    containerd's blobs move out of /var, which kind makes a volume of, so that nodes share them instead of copying: what is
    left in the content store are links. Nothing is unpacked: overlay on overlay does not go.
    """
    engine.docker("rm", "-f", container, check=False)
    engine.docker("run", "-d", "--name", container, "--privileged", "--network", "none", "--entrypoint", "sleep", plain, "infinity")
    try:
        engine.docker("exec", "-d", container, "containerd")
        engine.execute(container, "for i in $(seq 100); do ctr version >/dev/null 2>&1 && exit 0; sleep 0.2; done; exit 1")
        importing = ["exec", "-i", container, "ctr", "-n", "k8s.io", "images", "import", "--all-platforms", "--no-unpack", "--digests", "-"]
        engine.docker(*importing, stdin=archive)
        # only live states: the container's first process is `sleep`, which never reaps, so the ended containerd stays as a zombie
        share = f"mkdir -p /kind/blobs && cd {_CONTENT} && for blob in *; do mv $blob /kind/blobs/ && ln -s /kind/blobs/$blob $blob; done"
        engine.execute(
            container,
            f"pkill -x containerd; while pgrep -r D,R,S -x containerd >/dev/null; do sleep 0.1; done; rm -f /var/log/building; {share}",
        )
        engine.docker("commit", "--change", 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]', container, name)
    finally:
        engine.docker("rm", "-f", container, check=False)
