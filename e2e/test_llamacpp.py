"""The segment image with llama.cpp: built with its C++ part, small, and its own tests passed inside it."""

import subprocess
from pathlib import Path

import pytest

from e2e import data_plane
from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.cluster.supplies import images

pytestmark = [pytest.mark.engine, pytest.mark.long]

MOST_MB = 250  # on the base that is built here; the image is flat, so that the base hardly counts


def test_the_image_serves_gguf_files(engine: Cluster, tmp_path: Path) -> None:
    """Chains of slices against the unsplit llama.cpp for each tested architecture, and real servers in a chain."""
    dockerfile = str(images.sources()["segment-llamacpp"].dockerfile.relative_to(REPOSITORY))
    image = data_plane.built(engine, "segment-llamacpp", dockerfile, "--target", "llamacpp-test", "--build-arg", f"BASE={engine.base()}")
    run = data_plane.started(engine, image, "SI_TEST_MODEL", tmp_path / "llamacpp-tests.txt")
    try:
        run.passed()
    finally:
        data_plane.ended(engine, run)
    assert " passed" in run.output.read_text()


def test_the_image_is_small(engine: Cluster) -> None:
    """What it has is printed."""
    (name,) = engine.build_images(("segment-llamacpp",)).values()
    docker = engine.images_engine()
    size_mb = int(docker.docker("image", "inspect", "-f", "{{.Size}}", name)) / 1e6
    print(f"{name}: {size_mb:.0f} MB")
    assert size_mb < MOST_MB
    listed = subprocess.run(
        [docker.client, "run", "--rm", "--entrypoint", "ls", name, "/opt/libllama/lib", "/opt/libllama/licenses"],
        env=docker.env() | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "libggml-cpu-haswell.so" in listed
    assert "libggml-cpu-sapphirerapids.so" in listed
    assert "llama.cpp" in listed
