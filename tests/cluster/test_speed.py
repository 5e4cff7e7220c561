"""Speed labels by measurement: kept for each processor and image, and never nonsense."""

import json
from pathlib import Path

import pytest

from e2e.cluster.settings import WorkerSize
from e2e.cluster.speed import Speed, of_this_machine, processor, read
from e2e.cluster.usage import Process, kind_of
from e2e.cluster.usage import read as read_process

PRINTED = 'a warning\n{"gflops": 120.5, "gbps": 9.25}\n'


def test_a_worker_is_as_fast_as_its_cores():
    assert Speed(120.0, 10.0).labels(WorkerSize(0.25, 600)) == {
        "splitinference.dev/compute-gflops": "30.0",
        "splitinference.dev/memory-bandwidth-gbps": "2.50",
    }


def test_it_is_measured_once_for_each_processor_and_image(tmp_path: Path):
    runs: list[str] = []

    def measure() -> str:
        runs.append("run")
        return PRINTED

    for name, image in (("xeon", "1"), ("xeon", "1"), ("epyc", "1"), ("xeon", "2"), ("epyc", "1")):
        assert of_this_machine(tmp_path / "cache", image, measure, name=name) == Speed(120.5, 9.25)
    assert len(runs) == 3


@pytest.mark.parametrize(
    "printed", ['{"gflops": 0, "gbps": 9}', '{"gflops": 1, "gbps": NaN}', '{"gflops": -1, "gbps": 1}', '{"gflops": 1e9, "gbps": 1}']
)
def test_a_figure_that_cannot_be_is_an_error_and_is_not_kept(tmp_path: Path, printed: str):
    with pytest.raises(ValueError, match="no speed"):
        of_this_machine(tmp_path, "1", lambda: printed, name="x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_is_read():
    assert read(PRINTED) == Speed(120.5, 9.25)
    assert json.loads(PRINTED.splitlines()[-1])["gbps"] == 9.25


def test_processors_differ_by_name_and_by_what_they_can_do(tmp_path: Path):
    def of(name: str, flags: str) -> str:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nmodel name\t: {name}\nflags\t\t: {flags}\n\n" * 2)
        return processor(tmp_path / "cpuinfo")

    assert of("A", "avx2") == of("A", "avx2")
    assert len({of("A", "avx2"), of("B", "avx2"), of("A", "avx2 amx_bf16")}) == 3


def test_processor_time_is_read_from_what_the_kernel_says():
    line = "42 (kube (odd) name) S 1 42 42 0 -1 4194560 1 0 0 0 250 50 30 20 20 0 9 0 100 0 0"
    assert read_process("x-worker", line) == (42, Process("x-worker", "kube (odd) name", 3.5))
    assert read_process("x-worker", "nonsense") is None
    assert [kind_of(name) for name in ("x-control-plane", "x-worker2")] == ["control plane", "workers"]
