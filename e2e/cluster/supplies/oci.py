"""Container images as files: blobs by digest, manifests over them, and archives that containerd imports.

Layers stay in one folder that every node sees; a node's content store holds links to them. So an image costs no copy
on a node until one of its pods unpacks it there.
"""

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_CHUNK = 1 << 20


def architecture() -> str:
    """This machine's, as images name it."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Descriptor:
    """What a blob is, by content."""

    media_type: str
    digest: str
    size: int

    def json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


@dataclass(frozen=True)
class Image:
    """One image: its manifest, and all that the manifest names."""

    manifest: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]


@dataclass(frozen=True)
class Blobs:
    """A folder of files named by their SHA-256."""

    folder: Path

    def path(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    def put(self, content: bytes, media_type: str) -> Descriptor:
        return self.put_stream(io.BytesIO(content), media_type)

    def put_stream(self, stream: IO[bytes], media_type: str) -> Descriptor:
        """Store what `stream` holds. A blob is complete or not there: it is renamed into place."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sha, size = hashlib.sha256(), 0
        temporary = self.folder / f".{os.getpid()}-{id(stream)}"
        with temporary.open("wb") as out:
            while chunk := stream.read(_CHUNK):
                sha.update(chunk)
                size += len(chunk)
                out.write(chunk)
        digest = f"sha256:{sha.hexdigest()}"
        temporary.chmod(0o444)
        temporary.rename(self.path(digest))
        return Descriptor(media_type, digest, size)

    def put_layer(self, files: Mapping[str, Path | bytes]) -> Descriptor:
        """A layer with these executable files, by absolute path inside the image."""
        buffer = self.folder / f".layer-{os.getpid()}-{id(files)}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(buffer, "w") as tar:
            for name, content in sorted(files.items()):
                info = tarfile.TarInfo(name.lstrip("/"))
                info.mode = 0o755
                if isinstance(content, Path):
                    info.size = content.stat().st_size
                    with content.open("rb") as file:
                        tar.addfile(info, file)
                else:
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        with buffer.open("rb") as stream:
            descriptor = self.put_stream(stream, LAYER)
        buffer.unlink()
        return descriptor

    def put_image(self, layers: Sequence[Descriptor], entrypoint: Sequence[str] = ()) -> Image:
        """An image of uncompressed layers."""
        config = {
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": list(entrypoint)},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
        return self.put_manifest(self.put(_encode(config), CONFIG), layers)

    def put_manifest(self, config: Descriptor, layers: Sequence[Descriptor]) -> Image:
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config.json(), "layers": [layer.json() for layer in layers]}
        return Image(self.put(_encode(manifest), MANIFEST), config, tuple(layers))

    def take_docker_archive(self, stream: IO[bytes]) -> Image:
        """Read what `docker save IMAGE` writes (old and new engines) and store its blobs.

        Raises ValueError when the stream holds no image.
        """
        found: dict[str, Descriptor] = {}
        links: dict[str, str] = {}
        described: list[dict[str, Any]] = []
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if member.issym():
                    links[member.name] = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
                elif content is not None and member.name == "manifest.json":
                    described = json.load(content)
                elif content is not None and member.size > 0:
                    found[member.name] = self.put_stream(content, LAYER)
        if len(described) != 1:
            raise ValueError(f"expected one image in the archive, found {len(described)}")

        def blob(name: str) -> Descriptor:
            return found[links.get(name, name)]

        config = blob(described[0]["Config"])
        layers = [self._typed(blob(name)) for name in described[0]["Layers"]]
        image = self.put_manifest(Descriptor(CONFIG, config.digest, config.size), layers)
        self._forget([each for each in found.values() if each.digest not in {config.digest, *(layer.digest for layer in layers)}])
        return image

    def _typed(self, layer: Descriptor) -> Descriptor:
        with self.path(layer.digest).open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        return Descriptor(f"{LAYER}+gzip" if compressed else LAYER, layer.digest, layer.size)

    def _forget(self, descriptors: Sequence[Descriptor]) -> None:
        for descriptor in descriptors:
            self.path(descriptor.digest).unlink(missing_ok=True)

    def archive(self, images: Mapping[str, Image], *, layers: bool) -> bytes:
        """An OCI archive of `images` by full name; without `layers` only what describes them."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            manifests = []
            written: set[str] = set()
            for name, image in images.items():
                about = {"platform": {"architecture": architecture(), "os": "linux"}, "annotations": {"io.containerd.image.name": name}}
                manifests.append(image.manifest.json() | about)
                for blob in (image.manifest, image.config, *(image.layers if layers else ())):
                    if blob.digest not in written:
                        written.add(blob.digest)
                        _add(tar, f"blobs/sha256/{blob.digest.removeprefix('sha256:')}", self.path(blob.digest).read_bytes())
            _add(tar, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            _add(tar, "index.json", _encode({"schemaVersion": 2, "manifests": manifests}))
        return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
