"""Segments and gateway for real, where they run: their tests inside the segment image, with real Triton servers and the real model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest

from e2e import stack
from e2e.cluster import Cluster, images
from e2e.cluster.settings import REPOSITORY
from splitinference.cli.schemas import schemas

pytestmark = pytest.mark.cluster


def built(cluster: Cluster, name: str, dockerfile: str, *options: str) -> str:
    """An image with tests in it. The engine's cache makes it quick when nothing changed."""
    engine, image = cluster.engine(), f"{images.PREFIX}/{name}:test"
    words = ["build", "-t", image, "-f", str(REPOSITORY / dockerfile), *(["--network", "host"] if engine.private else []), *options]
    with images.build_secrets() as secrets:
        engine.docker(*words, *secrets, str(REPOSITORY), log=cluster.settings.logs / f"image-{name}-test.log")
    return image


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


def started(cluster: Cluster, image: str, model_variable: str, output: Path) -> Run:
    engine, model = cluster.engine(), cluster.settings.models / stack.MODEL
    options = ["--rm", "--network", "host" if engine.private else "bridge", "--shm-size", "1g", "--read-only", "--tmpfs", "/tmp"]
    options += ["-v", f"{model}:/model:ro", "-e", f"{model_variable}=/model", "--name", f"{cluster.settings.name}-{output.stem}"]
    with output.open("wb") as file:
        command = [engine.client, "run", *options, image]
        return Run(subprocess.Popen(command, env={**os.environ, **engine.env()}, stdout=file, stderr=subprocess.STDOUT), output)


@pytest.fixture(scope="module")
def runs(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Both at the same time: each mostly waits for servers to start, or to be found dead."""
    folder = tmp_path_factory.mktemp("data-plane")
    made = cluster.build_images(("segment", "gateway"))
    dockerfile = str(images.sources()["segment"].dockerfile.relative_to(REPOSITORY))
    segment = built(cluster, "segment", dockerfile, "--target", "test", "--build-arg", f"BASE={cluster.base()}")
    arguments = ("--build-arg", f"SEGMENT={made['segment']}", "--build-arg", f"GATEWAY={made['gateway']}")
    gateway = built(cluster, "gateway", "images/gateway/Dockerfile.test", *arguments)
    started_runs = {
        "segment": started(cluster, segment, "SI_TEST_MODEL", folder / "segment-tests.txt"),
        "gateway": started(cluster, gateway, "SI_TEST_MODEL_PATH", folder / "gateway-tests.txt"),
    }
    yield started_runs
    for run in started_runs.values():
        if run.process.poll() is None:
            cluster.engine().docker("rm", "-f", f"{cluster.settings.name}-{run.output.stem}", check=False)
            run.process.wait()


def test_segments(runs: dict[str, Run]) -> None:
    """Every split point of every family, three servers in a chain, faults and recovery: greedy tokens equal the unsplit model's."""
    runs["segment"].passed()


def test_the_speed_comparison_compares_what_is_the_same(cluster: Cluster, runs: dict[str, Run]) -> None:
    """`bench serve --quick`: one and three segments say what the unsplit model says. How fast is for a quiet machine to find out."""
    runs["segment"].process.wait()  # one after the other: memory
    runs["gateway"].process.wait()
    engine, made = cluster.engine(), cluster.build_images(("segment", "gateway"))
    command = [sys.executable, "-m", "splitinference.cli.main", "bench", "serve", "--quick", "--json", "--dtype", "float32"]
    command += ["--model", str(cluster.settings.models / stack.MODEL)]
    command += ["--segment-image", made["segment"], "--gateway-image", made["gateway"]]
    environment = {**os.environ, **engine.env(), "PATH": f"{Path(engine.client).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    jsonschema.validate(report, schemas()["bench-serve.schema.json"])
    assert {(s["name"], s["clients"]) for s in report["setups"]} >= {("unsplit", 1), ("segments-1", 1), ("segments-3", 3)}
    assert all(setup["same_text_as_unsplit"] for setup in report["setups"])
    left = engine.docker("ps", "-aq", "--filter", "name=splitinference-bench").split()
    assert left == []


def test_gateway_with_real_segments(runs: dict[str, Run]) -> None:
    """The same text from three real segments as from the whole model, also when one is killed in mid-stream."""
    runs["gateway"].passed()
