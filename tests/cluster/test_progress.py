"""Steps, their times, and what is shown of them."""

import io
import threading

import pytest
from rich.console import Console

from e2e.cluster.progress import Progress, Step, plain, shown, together


def test_a_step_has_name_time_and_end():
    progress = Progress()
    with progress.step("build") as step:
        assert step.ended is None
    assert [each.name for each in progress.steps] == ["build"]
    assert step.ended is not None
    assert not step.failed


def test_a_step_that_raises_failed_and_the_error_goes_on():
    progress = Progress()
    with pytest.raises(KeyError), progress.step("build"):
        raise KeyError("x")
    assert progress.steps[0].failed


def test_the_callback_sees_begin_and_end():
    seen: list[tuple[str, bool]] = []
    progress = Progress(show=lambda step: seen.append((step.name, step.ended is None)))
    with progress.step("a"):
        pass
    assert seen == [("a", True), ("a", False)]


def test_a_line_has_the_time_since_the_begin_and_the_steps_own():
    progress = Progress(begun=0.0)
    step = Step("build x", begun=1.0, ended=4.25, note="cached")
    line = plain(progress, step)
    assert line is not None
    assert line.startswith("[")
    assert line.endswith(" s] build x (cached): 3.2 s")


def test_nothing_is_said_of_a_step_that_runs():
    assert plain(Progress(), Step("x", begun=0.0)) is None


def test_without_a_terminal_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]):
    with shown(Console(file=io.StringIO())) as progress, progress.step("pull"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "s] pull" in captured.err


def test_on_a_terminal_finished_steps_stay_above_the_live_display():
    screen = io.StringIO()
    with shown(Console(file=screen, force_terminal=True, width=100)) as progress, progress.step("pull [image]"):
        pass
    assert "pull [image]" in screen.getvalue()


def test_together_runs_all_at_once_and_raises_the_first_error():
    barrier = threading.Barrier(2, timeout=5)
    done: list[str] = []

    def fails() -> None:
        barrier.wait()
        raise RuntimeError("broken")

    def works() -> None:
        barrier.wait()
        done.append("works")

    with pytest.raises(RuntimeError, match="broken"):
        together([fails, works])
    assert done == ["works"]
