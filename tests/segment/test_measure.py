"""The measurement of a node: figures of every data type, from real torch; what others take is not taken for slowness."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from splitinference_segment.programs import measure, measure_blocks


def test_figures_are_one_line_of_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    message = tmp_path / "termination-log"
    message.touch()
    monkeypatch.setattr(measure, "_TERMINATION_LOG", message)
    monkeypatch.setattr(measure.os, "nice", lambda _: 0)
    monkeypatch.setattr(measure, "RUNS", 1)
    assert measure.main(["--threads", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert message.read_text() == line
    assert len(line) < 4096, "a termination message has no more"
    for dtype in ("bfloat16", "float32"):
        assert 0 < found[dtype]["gflops"] < math.inf
        assert 0 < found[dtype]["gbps"] < math.inf
        assert 0 <= found[dtype]["launch_ms"] < 1000
    assert (found["v"], found["threads"], found["cores"]) == (1, 1, 1.0)
    assert 0 < found["share"] <= 1


class Clock:
    """Time that passes by work: `wall` seconds and `used` seconds of a core for each piece."""

    def __init__(self, wall: float, used: float) -> None:
        self.wall, self.used, self.done = wall, used, 0

    def work(self) -> None:
        self.done += 1

    def perf_counter(self) -> float:
        return self.done * self.wall

    def process_time(self) -> float:
        return self.done * self.used


@pytest.mark.parametrize(
    ("clock", "cores", "rate", "share"),
    [
        (Clock(0.01, 0.01), 1.0, 100.0, 1.0),
        (Clock(0.04, 0.01), 1.0, 100.0, 0.25),  # others have three quarters
        (Clock(0.02, 0.01), 0.5, 50.0, 1.0),  # half a core is all there is
        (Clock(0.01, 0.02), 2.0, 100.0, 1.0),
        (Clock(0.01, 0.01), 0.5, 100.0, 1.0),  # nobody holds it to its half
    ],
)
def test_what_others_take_is_not_taken_for_slowness(monkeypatch: pytest.MonkeyPatch, clock: Clock, cores: float, rate: float, share: float):
    monkeypatch.setattr(measure, "time", clock)
    assert measure.best(clock.work, cores, seconds=1.0, runs=2) == (pytest.approx(rate), pytest.approx(share))


@pytest.mark.parametrize("arguments", [["--threads", "0"], ["--millicores", "-1"], ["--threads", "x"]])
def test_bad_arguments_are_refused(arguments: list[str]):
    with pytest.raises(SystemExit):
        measure.main(arguments)


def test_a_kernel_that_does_not_say_its_processor(tmp_path: Path):
    assert measure.processor(tmp_path / "none") == ""
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: " + "x" * 200 + "\n")
    assert measure.processor(tmp_path / "cpuinfo") == "x" * 80


@pytest.mark.parametrize(("cores", "launch"), [(0.25, 4 * 1.0), (1.0, 1.0), (4.0, 1.0)])
def test_a_launch_is_what_a_block_takes_besides_its_products_on_one_core(monkeypatch: pytest.MonkeyPatch, cores: float, launch: float):
    """A core computes a block's products in 2 ms, reads its weights in 3, and takes 6 for all of it."""
    flops, read = 2 * measure_blocks.WEIGHTS / 2e-3, 2 * measure_blocks.WEIGHTS / 3e-3
    monkeypatch.setattr(measure, "product", lambda *_: ("computing", 1.0))
    monkeypatch.setattr(measure, "streamed", lambda *_: ("reading", 1.0))
    monkeypatch.setattr(measure_blocks, "decode_step", lambda _: "blocks")
    rates = {"computing": flops / 1e9, "reading": read / 1e9, "blocks": 1 / (6e-3 * measure_blocks.BLOCKS)}
    monkeypatch.setattr(measure, "best", lambda work, cores, runs=4: (cores * rates[work], 1.0))
    asked: list[int] = []
    torch = SimpleNamespace(bfloat16="bfloat16", set_num_threads=asked.append)
    assert measure.launch_ms(torch, 2, cores) == pytest.approx(launch)
    assert asked == [1, 2]
