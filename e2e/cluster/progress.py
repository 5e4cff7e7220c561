"""Each step with its name and time: a live display on a terminal, plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text


@dataclass
class Step:
    """One thing being done. `note` is what is known about it by now, shown beside the name."""

    name: str
    begun: float
    ended: float | None = None
    failed: bool = False
    note: str = ""

    @property
    def seconds(self) -> float:
        return (self.ended if self.ended is not None else time.monotonic()) - self.begun

    @property
    def title(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name


@dataclass
class Progress:
    """Steps so far, with their times. Steps may run beside each other in threads.

    `show` is called with the step at its begin (ended is None) and at its end; without it nothing is shown.
    """

    show: Callable[[Step], None] | None = None
    steps: list[Step] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Name and time what runs inside."""
        step = Step(name, time.monotonic())
        with self._lock:
            self.steps.append(step)
        self._tell(step)
        try:
            yield step
        except BaseException:
            step.failed = True
            raise
        finally:
            step.ended = time.monotonic()
            self._tell(step)

    def say(self, text: str) -> None:
        """A remark that takes no time."""
        with self.step(text):
            pass

    def seconds(self) -> float:
        return time.monotonic() - self.begun

    def _tell(self, step: Step) -> None:
        if self.show is not None:
            self.show(step)


def together(tasks: Sequence[Callable[[], object]]) -> None:
    """Run all tasks in threads; raise the first error once all have ended."""
    if not tasks:
        return
    with ThreadPoolExecutor(len(tasks)) as pool:
        futures = [pool.submit(task) for task in tasks]
    for future in futures:
        future.result()


def plain(progress: Progress, step: Step) -> str | None:
    """The line for a step that ended, or for one that has just begun (None: it says nothing new)."""
    at = f"[{progress.seconds():6.1f} s]"
    if step.ended is None:
        return None
    took = f": {step.seconds:.1f} s" if step.seconds >= 0.05 else ""
    return f"{at} {step.title}{' FAILED after' if step.failed else ''}{took}"


@contextmanager
def shown(console: Console | None = None) -> Iterator[Progress]:
    """A Progress that is shown on stderr: live on a terminal, as lines elsewhere."""
    console = console or Console(stderr=True, highlight=False)
    progress = Progress()
    if not console.is_terminal:

        def line(step: Step) -> None:
            if text := plain(progress, step):
                print(text, file=sys.stderr, flush=True)

        progress.show = line
        yield progress
        return
    with Live(_Running(progress), console=console, refresh_per_second=8, transient=True) as live:

        def above(step: Step) -> None:
            if text := plain(progress, step):
                live.console.print(text, style="red" if step.failed else None, markup=False, highlight=False)

        progress.show = above
        yield progress


@dataclass
class _Running:
    """What is being done at this moment, drawn anew at each refresh."""

    progress: Progress
    _spinners: dict[int, Spinner] = field(default_factory=dict)

    def __rich__(self) -> RenderableType:
        rows: list[RenderableType] = []
        for index, step in enumerate(list(self.progress.steps)):
            if step.ended is None:
                spinner = self._spinners.setdefault(index, Spinner("dots"))
                spinner.update(text=Text(f" {step.title}  {step.seconds:.0f} s"))
                rows.append(spinner)
        return Group(*rows)
