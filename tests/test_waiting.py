"""Tests wait long on a busy machine and briefly on an idle one, and not at all for what has ended."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.waiting import BUSY, SLOW, Patience, until, waited_seconds


def clock(busy: float) -> tuple[Callable[[], float], Callable[[], float]]:
    """A clock that goes on by a second at each look, and a machine that waits for so much of each."""
    now = [0.0]

    def tick() -> float:
        now[0] += 1.0
        return now[0]

    return tick, lambda: now[0] * busy


def looks(busy: float) -> int:
    """How often something that never comes is asked for on such a machine."""
    asked: list[int] = []
    with pytest.raises(AssertionError, match="a sign: not within"):
        until(lambda: asked.append(1), 10, "a sign", patience=Patience(*clock(busy)), pause_seconds=0)
    return len(asked)


def test_an_idle_machine_gives_up_soon_and_a_busy_one_later():
    assert looks(0.0) == pytest.approx(10 * SLOW, abs=2)
    assert looks(1.0) == pytest.approx(10 * SLOW * BUSY, abs=BUSY + 1)
    assert looks(0.0) < looks(0.5) < looks(1.0)


def test_a_kernel_that_does_not_tell_counts_as_busy():
    tick, _ = clock(0.0)
    patience = Patience(tick, lambda: None)
    assert [patience.spent() for _ in range(int(BUSY))][-1] == pytest.approx(1.0)


def test_what_has_ended_is_not_waited_for():
    with pytest.raises(AssertionError, match="an answer: it ended with 2"):
        until(lambda: False, 3600, "an answer", ended=lambda: "it ended with 2")


def test_what_comes_is_given_back_also_after_refused_connections():
    answers = iter([ConnectionRefusedError(), None, "yes"])

    def asked() -> str | None:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert until(asked, 60, "an answer", pause_seconds=0) == "yes"


def test_the_kernels_words_are_read(tmp_path: Path):
    file = tmp_path / "cpu"
    file.write_text("some avg10=1.00 avg60=2.00 avg300=3.00 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
    assert waited_seconds(file) == 2.5
    assert waited_seconds(tmp_path / "none") is None
    file.write_text("other words")
    assert waited_seconds(file) is None
