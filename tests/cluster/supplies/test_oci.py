"""Images as files: what is stored is what containerd will find."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest

from e2e.cluster.supplies.images import adoption
from e2e.cluster.supplies.oci import LAYER, Blobs, Descriptor


def docker_archive(config: bytes, layers: dict[str, bytes], *, link: tuple[str, str] | None = None) -> io.BytesIO:
    """What `docker save` writes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

        for name, content in layers.items():
            add(name, content)
        names = list(layers)
        if link is not None:
            info = tarfile.TarInfo(link[0])
            info.type, info.linkname = tarfile.SYMTYPE, link[1]
            tar.addfile(info)
            names.append(link[0])
        add("config.json", config)
        add("manifest.json", json.dumps([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]).encode())
    buffer.seek(0)
    return buffer


def test_a_blob_is_found_by_its_digest(tmp_path: Path):
    blobs = Blobs(tmp_path)
    blob = blobs.put(b"content", LAYER)
    assert blob == Descriptor(LAYER, f"sha256:{hashlib.sha256(b'content').hexdigest()}", 7)
    assert blobs.path(blob.digest).read_bytes() == b"content"


def test_the_same_files_make_the_same_layer(tmp_path: Path):
    program = tmp_path / "program"
    program.write_bytes(b"x")
    first = Blobs(tmp_path / "one").put_layer({"/bin/x": program, "/bin/y": b"y"})
    program.touch()
    assert Blobs(tmp_path / "two").put_layer({"/bin/y": b"y", "/bin/x": program}) == first


def test_an_image_saved_by_docker_keeps_its_layers_in_order(tmp_path: Path):
    blobs = Blobs(tmp_path)
    image = blobs.take_docker_archive(docker_archive(b"{}", {"a/layer.tar": b"lower", "b/layer.tar": b"upper"}))
    assert [blobs.path(layer.digest).read_bytes() for layer in image.layers] == [b"lower", b"upper"]
    manifest = json.loads(blobs.path(image.manifest.digest).read_bytes())
    assert [layer["digest"] for layer in manifest["layers"]] == [layer.digest for layer in image.layers]
    assert blobs.path(image.config.digest).read_bytes() == b"{}"


def test_a_layer_that_docker_wrote_once_and_links_to_is_found(tmp_path: Path):
    archive = docker_archive(b"{}", {"a/layer.tar": b"same"}, link=("b/layer.tar", "../a/layer.tar"))
    first, second = Blobs(tmp_path).take_docker_archive(archive).layers
    assert first == second


def test_a_compressed_layer_is_called_one(tmp_path: Path):
    (layer,) = Blobs(tmp_path).take_docker_archive(docker_archive(b"{}", {"a": b"\x1f\x8b rest"})).layers
    assert layer.media_type == f"{LAYER}+gzip"


def test_an_archive_without_an_image_is_refused(tmp_path: Path):
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    empty.seek(0)
    with pytest.raises(ValueError, match="expected one image"):
        Blobs(tmp_path).take_docker_archive(empty)


def test_an_archive_names_the_image_and_can_leave_its_layers_out(tmp_path: Path):
    blobs = Blobs(tmp_path)
    image = blobs.put_image([blobs.put_layer({"/pause": b"p"})], ["/pause"])
    with tarfile.open(fileobj=io.BytesIO(blobs.archive({"registry.k8s.io/pause:3.10": image}, layers=False))) as tar:
        index = tar.extractfile("index.json")
        assert index is not None
        (entry,) = json.load(index)["manifests"]
        names = set(tar.getnames())
    assert entry["annotations"] == {"io.containerd.image.name": "registry.k8s.io/pause:3.10"}
    assert entry["digest"] == image.manifest.digest
    blob = [f"blobs/sha256/{each.digest.removeprefix('sha256:')}" for each in (image.manifest, image.config, *image.layers)]
    assert names == {"oci-layout", "index.json", *blob[:2]}


def test_a_node_adopts_every_layer_from_the_shared_folder():
    script = adoption([Descriptor(LAYER, "sha256:" + "a" * 64, 5), Descriptor(LAYER, "sha256:" + "b" * 64, 6)])
    assert script.count("ctr -n k8s.io content ingest") == 2
    assert f"--expected-digest sha256:{'a' * 64} --expected-size 5" in script
    assert f"< /var/lib/splitinference/blobs/{'b' * 64}" in script
