"""Segments and gateway for real, where they run: their tests inside the segment image, with real Triton servers and the real model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from e2e import data_plane, stack
from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.cluster.supplies import images
from e2e.data_plane import Run
from splitinference.cli.schemas import schemas

pytestmark = pytest.mark.engine

SOAK_SECONDS = 45


@pytest.fixture(scope="module")
def runs(engine: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Run]]:
    """Both at the same time: each mostly waits for servers to start, or to be found dead."""
    folder = tmp_path_factory.mktemp("data-plane")
    gateway = data_plane.gateway_with_segments(engine)
    dockerfile = str(images.sources()["segment"].dockerfile.relative_to(REPOSITORY))
    segment = data_plane.built(engine, "segment", dockerfile, "--target", "test", "--build-arg", f"BASE={engine.base()}")
    started_runs = {
        "segment": data_plane.started(engine, segment, "SI_TEST_MODEL", folder / "segment-tests.txt"),
        "gateway": data_plane.started(engine, gateway, "SI_TEST_MODEL_PATH", folder / "gateway-tests.txt"),
    }
    yield started_runs
    for run in started_runs.values():
        data_plane.ended(engine, run)


def test_segments(runs: dict[str, Run]) -> None:
    """Every split point of every family, three servers in a chain, faults and recovery: greedy tokens equal the unsplit model's."""
    runs["segment"].passed()


def test_the_speed_comparison_compares_what_is_the_same(engine: Cluster, runs: dict[str, Run]) -> None:
    """`bench serve --quick`: one and three segments say what the unsplit model says. How fast is for a quiet machine to find out."""
    runs["segment"].process.wait()  # one after the other: memory
    runs["gateway"].process.wait()
    report = bench(engine, "serve", "--dtype", "float32")
    jsonschema.validate(report, schemas()["bench-serve.schema.json"])
    assert {(s["name"], s["clients"]) for s in report["setups"]} >= {("unsplit", 1), ("segments-1", 1), ("segments-3", 3)}
    assert all(setup["same_text_as_unsplit"] for setup in report["setups"])


def bench(engine: Cluster, part: str, *words: str) -> dict[str, Any]:
    """What `splitinference bench PART --quick` measures with the images of this checkout; it leaves no container."""
    docker, made = engine.images_engine(), engine.build_images(("segment", "gateway"))
    command = [sys.executable, "-m", "splitinference.cli.main", "bench", part, "--quick", "--json", *words]
    command += ["--model", str(engine.settings.models / stack.MODEL)]
    command += ["--segment-image", made["segment"], "--gateway-image", made["gateway"]]
    environment = {**os.environ, **docker.env(), "PATH": f"{Path(docker.client).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    assert docker.docker("ps", "-aq", "--filter", "name=splitinference-bench").split() == []
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_gateway_with_real_segments(runs: dict[str, Run]) -> None:
    """The same text from three real segments as from the whole model, also when one is killed in mid-stream."""
    runs["gateway"].passed()


@pytest.mark.long
def test_loadgen_before_and_after_a_re_split(engine: Cluster) -> None:
    """`bench mlperf --quick`: MLPerf's LoadGen on even cuts over unequal segments, and on the planner's. No request fails."""
    cores = [0.5, 0.15, 0.5]
    report = bench(engine, "mlperf", "--cores", ",".join(map(str, cores)), "--tokens", "4", "--bounds", "120000,60000")
    even, planned = report["setups"]
    assert {result["scenario"] for setup in (even, planned) for result in setup["results"]} == {
        "SingleStream",
        "MultiStream",
        "Server",
        "Offline",
    }
    assert all(result["failed"] == 0 for setup in (even, planned) for result in setup["results"])
    assert sorted(planned["cores"]) == sorted(cores)
    weak = planned["cores"].index(0.15)
    layers = [end - start for start, end in pairwise(planned["cuts"])]
    assert layers[weak] == min(layers), "the planner gives the weak node the fewest layers"
    assert even["rate"]["requests_per_second"] > 0
    assert planned["rate"]["requests_per_second"] > 0


@pytest.mark.long
def test_a_short_soak_leaves_nothing_behind(engine: Cluster, runs: dict[str, Run], tmp_path: Path) -> None:
    """Load with cancels, cutovers, and kills of stubs, servers and whole pods: no request fails, no text changes, nothing leaks."""
    runs["segment"].process.wait()  # one after the other: memory
    runs["gateway"].process.wait()
    image, output = data_plane.gateway_with_segments(engine), tmp_path / "soak.txt"
    run = data_plane.started(engine, image, "SI_TEST_MODEL_PATH", output, data_plane.soak_command(SOAK_SECONDS))
    try:
        run.passed()
    finally:
        data_plane.ended(engine, run)
    figures = json.loads(output.read_text().splitlines()[-1])
    assert figures["ok"]
    assert figures["requests"] > 20
    assert figures["cutovers"] >= 3
    assert figures["killed_stub"] + figures["killed_server"] + figures["killed_pod"] >= 1
