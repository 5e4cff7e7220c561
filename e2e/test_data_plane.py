"""Segments and gateway for real, where they run: their tests inside the segment image, with real Triton servers and the real model."""

import os
import subprocess

import pytest

from e2e import stack
from e2e.cluster import Cluster, images
from e2e.cluster.settings import REPOSITORY

pytestmark = pytest.mark.cluster


def built(cluster: Cluster, name: str, dockerfile: str, *options: str) -> str:
    """An image with tests in it. The engine's cache makes it quick when nothing changed."""
    engine, image = cluster.engine(), f"{images.PREFIX}/{name}:test"
    words = ["build", "-t", image, "-f", str(REPOSITORY / dockerfile), *(["--network", "host"] if engine.private else []), *options]
    with images.build_secrets() as secrets:
        engine.docker(*words, *secrets, str(REPOSITORY), log=cluster.settings.logs / f"image-{name}-test.log")
    return image


def run_tests(cluster: Cluster, image: str, model_variable: str) -> None:
    """Run the image's own tests on the real model; what they print is shown, and their failure is ours."""
    engine, model = cluster.engine(), cluster.settings.models / stack.MODEL
    options = ["--rm", "--network", "host" if engine.private else "bridge", "--shm-size", "1g", "--read-only", "--tmpfs", "/tmp"]
    options += ["-v", f"{model}:/model:ro", "-e", f"{model_variable}=/model"]
    command = [engine.client, "run", *options, image]
    done = subprocess.run(command, env={**os.environ, **engine.env()}, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    assert done.returncode == 0


def test_segments(cluster: Cluster) -> None:
    """Every split point of every family, three servers in a chain, faults and recovery: greedy tokens equal the unsplit model's."""
    base = images.sources()["segment"]
    cluster.build_images(("segment",))
    image = built(
        cluster, "segment", str(base.dockerfile.relative_to(REPOSITORY)), "--target", "test", "--build-arg", f"BASE={cluster.base()}"
    )
    run_tests(cluster, image, "SI_TEST_MODEL")


def test_gateway_with_real_segments(cluster: Cluster) -> None:
    """The same text from three real segments as from the whole model, also when one is killed in mid-stream."""
    made = cluster.build_images(("segment", "gateway"))
    arguments = ("--build-arg", f"SEGMENT={made['segment']}", "--build-arg", f"GATEWAY={made['gateway']}")
    run_tests(cluster, built(cluster, "gateway", "images/gateway/Dockerfile.test", *arguments), "SI_TEST_MODEL_PATH")
