"""One solver process serves all tenants: whoever brings many problems waits for those who bring few, and not they for him."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from splitinference.adapters.fair_solver import FairSolver, FairTurns
from splitinference.core.values.result import TimedOut


class Turns:
    """Turns that end when the test says so; time is what the test says a turn took."""

    def __init__(self) -> None:
        self.time = 0.0
        self.turns = FairTurns(lambda: self.time)
        self.order: list[str] = []
        self.ends = threading.Semaphore(0)
        self.began = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []

    def ask(self, tenant: str) -> None:
        """The tenant waits for a turn; this comes back when it waits or has it."""
        before = len(self.order) + self.turns.waiting

        def take() -> None:
            with self.turns.turn(tenant):
                self.order.append(tenant)
                self.began.release()
                self.ends.acquire()

        self.threads.append(threading.Thread(target=take))
        self.threads[-1].start()
        while len(self.order) + self.turns.waiting == before:
            threading.Event().wait(0.001)

    def end(self, seconds: float, **of_tenant: float) -> None:
        """The turn that is under way has taken so long, or what is said for its tenant."""
        self.began.acquire()
        self.time += of_tenant.get(self.order[-1], seconds)
        self.ends.release()


@contextmanager
def turns() -> Iterator[Turns]:
    made = Turns()
    yield made
    for thread in made.threads:
        thread.join()


def test_a_tenant_with_many_problems_does_not_keep_another_waiting() -> None:
    with turns() as t:
        for _ in range(6):
            t.ask("many")
        t.ask("few")
        for _ in range(7):
            t.end(1.0)
    assert t.order[:3] == ["many", "few", "many"], "the other's first problem comes after the one that is under way"


def test_time_counts_and_not_the_number_of_problems() -> None:
    with turns() as t:
        for _ in range(3):
            t.ask("long")
        for _ in range(9):
            t.ask("short")
        for _ in range(12):
            t.end(1.0, long=9.0)
    assert t.order[:11] == ["long", *["short"] * 9, "long"], "nine seconds of the one are as much as nine problems of the other"


def test_a_pause_gives_no_credit() -> None:
    with turns() as t:
        t.ask("early")
        t.end(1.0)
        for _ in range(5):
            t.ask("steady")
            t.end(10.0)
        for _ in range(15):
            t.ask("early")
        t.ask("steady")
        for _ in range(16):
            t.end(1.0)
    # Fifty seconds of the one against one of the other; but only the last ten of them are held against it.
    assert t.order[6:].index("steady") in (10, 11), t.order


def test_a_turn_that_fails_is_over() -> None:
    turns = FairTurns()
    for _ in range(2):
        try:
            with turns.turn("a"):
                raise RuntimeError
        except RuntimeError:
            continue
    with turns.turn("b"):
        assert turns.waiting == 0


def test_each_thread_solves_for_its_own_tenant() -> None:
    asked: list[str] = []

    class Process:
        def solve(self, *_: object) -> TimedOut:
            return TimedOut(None, 0.0)

    solver = FairSolver(Process())  # type: ignore[arg-type]
    taking = solver._turns.turn
    solver._turns.turn = lambda tenant: (asked.append(tenant), taking(tenant))[1]  # type: ignore[method-assign]

    def one(tenant: str) -> None:
        with solver.on_behalf_of(tenant):
            solver.solve(None)  # type: ignore[arg-type]

    threads = [threading.Thread(target=one, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    solver.solve(None)  # type: ignore[arg-type]
    assert sorted(asked) == ["", "a", "b", "c"]
