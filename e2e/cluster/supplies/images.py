"""Our images: built when something that they are made from changed, and given to nodes without copying their layers."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import CommandError, pipe
from e2e.cluster.faults import cores_of_node, limit_cpu
from e2e.cluster.machine.engine import Engine
from e2e.cluster.progress import together
from e2e.cluster.settings import BLOBS_ON_NODE, REPOSITORY, Settings
from e2e.cluster.supplies.oci import Blobs, Descriptor, Image

PREFIX = "localhost/splitinference"
ON_REQUEST = ("segment-llamacpp",)
"""Images that are built only when something asks for them by name: this one compiles llama.cpp, once, for half an hour."""
_HERE = Path(__file__).parents[1]
_CONTENT = "/var/lib/containerd/io.containerd.content.v1.content/blobs/sha256"


@dataclass(frozen=True)
class Source:
    """Where an image comes from: a Dockerfile whose context is the repository."""

    name: str
    dockerfile: Path

    @property
    def dev(self) -> str:
        """The name that always means the last one built."""
        return f"{PREFIX}/{self.name}:dev"


def _ours(name: str, *candidates: str) -> Source:
    paths = [REPOSITORY / "images" / name / candidate for candidate in candidates]
    return Source(name, next((path for path in paths if path.exists()), paths[-1]))


def sources() -> dict[str, Source]:
    """All images by name: what runs in pods for a user, and what only the test cluster runs. CPU flavours where there are any."""
    ours = [_ours(name, "Dockerfile.cpu", "Dockerfile") for name in ("operator", "segment", "gateway")]
    engines = [Source("segment-llamacpp", REPOSITORY / "images" / "segment" / "Dockerfile.llamacpp")]
    mine = [Source(name, _HERE / "manifests" / f"{name}.Dockerfile") for name in ("prometheus", "burner")]
    return {source.name: source for source in (*ours, *engines, *mine)}


def copied(dockerfile: str) -> list[str]:
    """Paths that a Dockerfile copies from its context, in order."""
    joined = re.sub(r"\\\s*\n", " ", dockerfile)
    found: list[str] = []
    for line in joined.splitlines():
        words = shlex.split(line, comments=True) if re.match(r"\s*(COPY|ADD)\s", line, re.IGNORECASE) else []
        flags = [word for word in words[1:] if word.startswith("--")]
        if words and not any(flag.startswith("--from=") for flag in flags):
            found += [word for word in words[1:-1] if not word.startswith("--")]
    return found


def stage(source: Source) -> str | None:
    """The Dockerfile's stage that is named as the image; None: its last. A Dockerfile may go on after it, with a stage for tests."""
    return source.name if _stage_line(source.dockerfile.read_text(), source.name) else None


def _stage_line(dockerfile: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^FROM\s.*\sAS\s+{re.escape(name)}\s*$", dockerfile, re.IGNORECASE | re.MULTILINE)


def content_key(dockerfile: Path, root: Path, base: str, last_stage: str | None = None) -> str:
    """Hash of the Dockerfile up to its stage `last_stage`, the base, and every file copied in. The same key means the same image."""
    text = dockerfile.read_text()
    if last_stage and (found := _stage_line(text, last_stage)):
        after = re.compile(r"^FROM\s", re.IGNORECASE | re.MULTILINE).search(text, found.end())
        text = text[: after.start()] if after else text
    sha = hashlib.sha256(base.encode() + text.encode())
    for pattern in copied(text):
        for top in sorted(root.glob(pattern.rstrip("/"))) if any(c in pattern for c in "*?[") else [root / pattern]:
            for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
                if path.is_file() and "__pycache__" not in path.parts:
                    sha.update(f"{path.relative_to(root)}\0{path.stat().st_mode & 0o111}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def tag(engine: Engine, source: Source, base: str) -> str:
    """The image's name with its content key; the base counts by its id, so that a new base makes a new image."""
    identity = engine.docker("images", "--no-trunc", "-q", base).strip() or base
    return f"{PREFIX}/{source.name}:{content_key(source.dockerfile, REPOSITORY, identity, stage(source))}"


def build(settings: Settings, engine: Engine, source: Source, base: str) -> str:
    """Build the image unless it is there; either way `:dev` names it afterwards. Returns its full name."""
    name = tag(engine, source, base)
    if not engine.has_image(name):
        with build_secrets() as secrets:
            words = ["build", "--build-arg", f"BASE={base}", "-t", name, "-f", str(source.dockerfile), *secrets]
            words += ["--network", "host"] if engine.private else []
            words += ["--target", target] if (target := stage(source)) else []
            engine.docker(*words, str(REPOSITORY), log=settings.logs / f"image-{source.name}.log")
    engine.docker("tag", name, source.dev)
    return name


@contextmanager
def build_secrets() -> Iterator[list[str]]:
    """Options of `docker build` by which this machine's CA bundle and pip settings reach a build, and no layer."""
    options: list[str] = []
    if bundle := next(filter(None, map(os.environ.get, ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"))), None):
        options += ["--secret", f"id=ca,src={bundle}"]
    with tempfile.TemporaryDirectory() as folder:
        if pip := pip_settings(os.environ):
            file = Path(folder) / "pip.conf"
            file.write_text(pip)
            options += ["--secret", f"id=pip,src={file}"]
        yield options


def pip_settings(environment: Mapping[str, str]) -> str:
    """A pip.conf that says where packages come from here; empty when nothing is set. Paths of certificates stay out."""
    wanted = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")
    found: dict[str, str] = {}
    files = ["/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", environment.get("PIP_CONFIG_FILE", "")]
    for name in filter(None, files):
        path = Path(name).expanduser()
        for line in path.read_text().splitlines() if path.is_file() else []:
            key, sign, value = line.partition("=")
            if sign and key.strip() in wanted:
                found[key.strip()] = value.strip()
    for key in wanted:
        if given := environment.get("PIP_" + key.replace("-", "_").upper()):
            found[key] = given
    return "[global]\n" + "".join(f"{key} = {value}\n" for key, value in found.items()) if found else ""


def prune(settings: Settings, engine: Engine, keep: Sequence[str]) -> None:
    """Remove our images of yesterday from engine and cache. What `:dev` or `:test` names stays, and what is in `keep`.

    Only while no node runs: a running one may still have links to blobs that it has not unpacked.
    """
    listed = engine.docker("images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}", f"{PREFIX}/*").splitlines()
    names = {name: identity for identity, name in (line.split(" ", 1) for line in listed)}
    kept = {identity for name, identity in names.items() if name.endswith((":dev", ":test")) or name in keep}
    for name, identity in names.items():
        if identity not in kept:
            engine.docker("rmi", name, check=False)
    used: set[str] = set()
    for index in settings.blobs.glob("*.image.json"):
        if f"sha256:{index.name.removesuffix('.image.json')}" in kept:
            data = json.loads(index.read_text())
            used |= {blob[1].removeprefix("sha256:") for blob in (data["manifest"], data["config"], *data["layers"])}
        else:
            index.unlink()
    for blob in settings.blobs.glob("[!.]*"):
        if blob.name not in used and not blob.name.endswith(".json"):
            blob.unlink()
    for torn in settings.blobs.glob(".*"):
        torn.unlink()


# ---- to the nodes


def export(settings: Settings, engine: Engine, name: str) -> Image:
    """The image's blobs, in the folder that every node sees; read from the engine once per image."""
    identity = engine.docker("image", "inspect", "-f", "{{.Id}}", name).strip()
    blobs = Blobs(settings.blobs)
    index = settings.blobs / f"{identity.removeprefix('sha256:')}.image.json"
    if index.exists():
        data = json.loads(index.read_text())
        image = Image(Descriptor(*data["manifest"]), Descriptor(*data["config"]), tuple(Descriptor(*layer) for layer in data["layers"]))
        if all(blobs.path(blob.digest).exists() for blob in (image.manifest, image.config, *image.layers)):
            return image
    with subprocess.Popen([engine.client, "save", name], env={**os.environ, **engine.env()}, stdout=subprocess.PIPE) as saving:
        if saving.stdout is None:
            raise RuntimeError("docker save has no output")
        image = blobs.take_docker_archive(saving.stdout)

    def fields(blob: Descriptor) -> list[object]:
        return [blob.media_type, blob.digest, blob.size]

    index.write_text(
        json.dumps({"manifest": fields(image.manifest), "config": fields(image.config), "layers": [fields(x) for x in image.layers]})
    )
    return image


def load(settings: Settings, engine: Engine, names: Sequence[str], nodes: Sequence[str]) -> None:
    """Make `nodes` know the images `names`. Layers are linked into their content stores, not copied; a node unpacks what it runs."""
    images = {_full(name): export(settings, engine, name) for name in names}
    archive = Blobs(settings.blobs).archive(images, layers=False)
    layers = {layer.digest: layer for image in images.values() for layer in image.layers}
    script = adoption(list(layers.values()))

    importing = ("ctr", "-n", "k8s.io", "images", "import", "--all-platforms", "--no-unpack", "--digests", "-")

    def give(node: str) -> None:
        try:
            engine.execute(node, script)
            engine.docker("exec", "-i", node, *importing, stdin=archive)
        except CommandError:  # a containerd that does not share content, or an engine that does not see our folder: copy
            saving = [engine.client, "save", *names]
            pipe(saving, [engine.client, "exec", "-i", node, *importing], env=engine.env(), log=settings.logs / "load.log")

    together([lambda node=node: give(node) for node in nodes])  # type: ignore[misc]


def unpack(settings: Settings, engine: Engine, names: Sequence[str], nodes: Sequence[str]) -> None:
    """Let `nodes` unpack images that they know, ahead of the first pod: the work of a node that unpacks looks like another tenant's.

    One node after the other, and each with all of the machine meanwhile: together they would only wait for the disk and for each other.
    """
    images = {_full(name): export(settings, engine, name) for name in names}
    archive = Blobs(settings.blobs).archive(images, layers=False)
    words = ("ctr", "-n", "k8s.io", "images", "import", "--digests", "--snapshotter=overlayfs", "-")
    for node in nodes:
        with unlimited(engine, node):
            engine.docker("exec", "-i", node, *words, stdin=archive)


@contextmanager
def unlimited(engine: Engine, node: str) -> Iterator[None]:
    """The node may use all cores; afterwards as many as before."""
    cores = cores_of_node(engine, node)
    if cores:
        limit_cpu(engine, node, os.cpu_count() or 1)
    try:
        yield
    finally:
        if cores:
            limit_cpu(engine, node, cores)


def adoption(layers: Sequence[Descriptor]) -> str:
    """A script that makes a node's containerd own `layers` without writing them.

    Each is linked into the content store and then ingested from the very file: containerd sees that a blob of this digest is there
    already, seeks over it and only notes it down. The label keeps its garbage collector off; what it would free is a link.
    """
    lines = [f"mkdir -p {_CONTENT}", "known=$(ctr -n k8s.io content ls -q)"]
    for layer in layers:
        digest, name = layer.digest, layer.digest.removeprefix("sha256:")
        file = f"{BLOBS_ON_NODE}/{name}"
        lines.append(
            f"case $known in *{name}*) ;; *) for attempt in 1 2 3; do\n"
            f"  [ -e {_CONTENT}/{name} ] || ln -sf {file} {_CONTENT}/{name}\n"
            f"  ctr -n k8s.io content ingest --expected-digest {digest} --expected-size {layer.size} adopt < {file} >/dev/null &&\n"
            f"  ctr -n k8s.io content label {digest} containerd.io/gc.root=1 >/dev/null && break\n"
            f"  [ $attempt -lt 3 ] || exit 1\n"
            f"done ;; esac"
        )
    return "\n".join(lines)


def _full(name: str) -> str:
    """The name as containerd and the kubelet have it: with its registry."""
    first = name.partition("/")[0]
    if "/" in name and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name if '/' in name else f'library/{name}'}"
