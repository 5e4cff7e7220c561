"""Images with tests in them, and containers that run those tests on the real model: what tests and the soak of the data plane share."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.cluster.supplies import images


def built(cluster: Cluster, name: str, dockerfile: str, *options: str) -> str:
    """An image with tests in it. The engine's cache makes it quick when nothing changed."""
    engine, image = cluster.images_engine(), f"{images.PREFIX}/{name}:test"
    words = ["build", "-t", image, "-f", str(REPOSITORY / dockerfile), *(["--network", "host"] if engine.private else []), *options]
    with images.build_secrets() as secrets:
        engine.docker(*words, *secrets, str(REPOSITORY), log=cluster.settings.logs / f"image-{name}-test.log")
    return image


def gateway_with_segments(cluster: Cluster) -> str:
    """The image with gateway, segments, and the tests that need both."""
    made = cluster.build_images(("segment", "gateway"))
    arguments = ("--build-arg", f"SEGMENT={made['segment']}", "--build-arg", f"GATEWAY={made['gateway']}")
    return built(cluster, "gateway", "images/gateway/Dockerfile.test", *arguments)


@dataclass(frozen=True)
class Run:
    """A container that runs its image's own tests, on the real model; its output goes to a file."""

    process: subprocess.Popen[bytes]
    output: Path

    def passed(self) -> None:
        """Wait for the end; what the tests printed is shown, and their failure is ours."""
        code = self.process.wait()
        print(self.output.read_text())
        assert code == 0


def started(cluster: Cluster, image: str, model_variable: str, output: Path, command: Sequence[str] = ()) -> Run:
    """Start the container; without a command it runs its tests. Its name is the cluster's with the output file's stem.

    It has a loopback of its own and no other network, so that ports of one run are not those of another.
    """
    engine, model, encoder = cluster.images_engine(), cluster.settings.models / stack.MODEL, stack.put_encoder(cluster)
    options = ["--rm", "--init", "--network", "none", "--shm-size", "1g", "--read-only", "--tmpfs", "/tmp"]
    options += ["-v", f"{model}:/model:ro", "-e", f"{model_variable}=/model", "--name", container(cluster, output)]
    options += ["-v", f"{encoder}:/encoder:ro", "-e", "SI_TEST_ENCODER_PATH=/encoder"]
    with output.open("wb") as file:
        words = [engine.client, "run", *options, image, *command]
        return Run(subprocess.Popen(words, env={**os.environ, **engine.env()}, stdout=file, stderr=subprocess.STDOUT), output)


def ended(cluster: Cluster, run: Run) -> None:
    """Remove the container when it still runs."""
    if run.process.poll() is None:
        cluster.images_engine().docker("rm", "-f", container(cluster, run.output), check=False)
        run.process.wait()


def container(cluster: Cluster, output: Path) -> str:
    """The name of the container that writes to this file."""
    return f"{cluster.settings.name}-{output.stem}"


def soak_command(seconds: float) -> list[str]:
    """What the image with gateway and segments is to run for a soak of so many seconds of load."""
    return ["/opt/gateway/bin/python", "-m", "tests.gateway.soak", "--seconds", f"{seconds:g}"]
