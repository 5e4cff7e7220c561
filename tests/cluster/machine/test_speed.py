"""Speed labels by measurement: kept for each processor, image and size, and never nonsense."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from e2e.cluster.machine.speed import Speed, of_this_machine, processor, read
from e2e.cluster.machine.usage import Process, kind_of
from e2e.cluster.machine.usage import read as read_process

PRINTED = 'a warning\n{"gflops": 120.5, "gbps": 9.25, "launch_ms": 0.5}\n'


def test_labels_say_what_was_measured():
    assert Speed(30.04, 2.5, 3.45678).labels() == {
        "splitinference.dev/compute-gflops": "30.0",
        "splitinference.dev/memory-bandwidth-gbps": "2.50",
        "splitinference.dev/layer-launch-ms": "3.457",
    }


class Measuring:
    """How often a container was started, and what it was asked."""

    def __init__(self, printed: str = PRINTED) -> None:
        self.printed, self.started, self.asked = printed, 0, list[float]()

    @contextmanager
    def __call__(self) -> Iterator[Callable[[float], str]]:
        self.started += 1
        yield self.ask

    def ask(self, cores: float) -> str:
        self.asked.append(cores)
        return self.printed


def test_each_size_is_measured_once_for_each_processor_and_image(tmp_path: Path):
    measuring = Measuring()
    for name, image in (("xeon", "1"), ("xeon", "1"), ("epyc", "1"), ("xeon", "2"), ("epyc", "1")):
        found = of_this_machine(tmp_path / "cache", image, (0.5, 0.25, 0.5), measuring, name=name)
        assert found == {0.5: Speed(120.5, 9.25, 0.5), 0.25: Speed(120.5, 9.25, 0.5)}
    assert (measuring.started, measuring.asked) == (3, [0.25, 0.5] * 3)


def test_a_size_is_measured_as_it_is_and_not_taken_from_another(tmp_path: Path):
    measuring = Measuring()
    of_this_machine(tmp_path, "1", (0.5,), measuring, name="x")
    of_this_machine(tmp_path, "1", (0.5, 0.3), measuring, name="x")
    assert measuring.asked == [0.5, 0.3]


def test_two_cores_compute_twice_as_much_but_launch_no_quicker(tmp_path: Path):
    measuring = Measuring()
    assert of_this_machine(tmp_path, "1", (2.0,), measuring, name="x") == {2.0: Speed(241.0, 18.5, 0.5)}
    assert measuring.asked == [1.0]


@pytest.mark.parametrize(
    "figures",
    [
        '"gflops": 0, "gbps": 9, "launch_ms": 1',
        '"gflops": 1, "gbps": NaN, "launch_ms": 1',
        '"gflops": -1, "gbps": 1, "launch_ms": 1',
        '"gflops": 1e9, "gbps": 1, "launch_ms": 1',
        '"gflops": 1, "gbps": 1, "launch_ms": -1',
        '"gflops": 1, "gbps": 1, "launch_ms": NaN',
    ],
)
def test_a_figure_that_cannot_be_is_an_error_and_is_not_kept(tmp_path: Path, figures: str):
    with pytest.raises(ValueError, match="no speed"):
        of_this_machine(tmp_path, "1", (1.0,), Measuring(f"{{{figures}}}"), name="x")
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_is_read():
    assert read(PRINTED) == Speed(120.5, 9.25, 0.5)


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
