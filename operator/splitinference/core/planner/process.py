"""The solver in a process of its own, with a hard deadline and a cap on its memory: it can neither hang nor take anything down.

The process stays for further problems, so that only the first pays for its start. Problem and outcome travel as pickles over its
standard input and output; both ends are this program.
"""

import math
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any, TypeAlias

from splitinference.core.planner.columns.share import check_together
from splitinference.core.planner.judge import judged
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.result import (
    DEFAULT_LIMITS,
    Incumbent,
    Infeasible,
    JointIncumbent,
    JointlySolved,
    JointOutcome,
    Limits,
    Outcome,
    Solved,
    TimedOut,
)

GRACE_SECONDS = 2.0
"""How long after its own deadline the process may take to hand over what it has; then it is killed."""
START_SECONDS = 60.0
"""How long the process may take to start on a busy machine; not part of a problem's time."""
INTERRUPT_SECONDS = 0.25
"""How long after its deadline the process interrupts itself, where the search has not looked at the clock."""
_LENGTH = struct.Struct("<Q")
Question: TypeAlias = tuple[str, list[str], float, str | None]
"""One problem, or several jointly or in turn; the problems as JSON; seconds; a hint as JSON."""


class SolverError(Exception):
    """The solver's process ended without an answer; the message has its last words."""


class SolverProcess:
    """One solver process at a time, started when needed. Safe to use from several threads: they wait for each other."""

    def __init__(self, memory_mib: int = DEFAULT_LIMITS.memory_mib, niceness: int = 0) -> None:
        """`niceness`: by how much it gives way to others on its processors, 0..19."""
        self._memory_mib, self._niceness = memory_mib, niceness
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def solve(self, problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None) -> Outcome:
        """As `solve`, in the process. Where that is killed or breaks (also: out of memory), TimedOut with the best plan that it reported.

        Raises SolverError if it breaks before it has reported a plan.
        """
        reported: list[Incumbent] = []
        question = ("one", [problem.model_dump_json()], limits.seconds, hint.model_dump_json() if hint else None)
        try:
            answer = self._ask(question, limits, reported)
        except SolverError:
            if not reported:
                raise
            answer = None
        if isinstance(answer, Solved | Infeasible | TimedOut):
            return answer
        if isinstance(answer, str) and not reported:
            raise SolverError(answer)
        return self._best_of(problem, reported, limits.seconds, hint)

    @staticmethod
    def _best_of(problem: Problem, reported: Sequence[Incumbent], seconds: float, hint: Plan | None) -> Outcome:
        """The outcome for the last that was reported, after the judge has seen it: solved where the gap is small."""
        if not reported:
            return TimedOut(hint, math.inf if problem.objective.goal is Goal.THROUGHPUT else -math.inf)
        plan, bound = reported[-1].plan, reported[-1].bound
        return TimedOut(None, bound) if plan is None else judged(plan, problem, bound, seconds, late=True)

    def solve_several(self, problems: Sequence[Problem], limits: Limits = DEFAULT_LIMITS, *, jointly: bool) -> JointOutcome:
        """As `solve_jointly` or `solve_in_turn`, in the process; where that is killed or breaks, the best plans that it reported.

        Raises ValueError for problems that cannot be planned together, and SolverError if it breaks before it has reported plans.
        """
        check_together(problems, jointly=jointly)
        how = "jointly" if jointly else "in turn"
        reported: list[JointIncumbent] = []
        answer: object | None = None
        try:
            answer = self._ask((how, [problem.model_dump_json() for problem in problems], limits.seconds, None), limits, reported)
        except SolverError:
            if not reported:
                raise
        if isinstance(answer, JointlySolved | Infeasible | TimedOut):
            return answer
        if reported:
            return reported[-1].found
        if answer is None:
            return TimedOut(None, -math.inf)
        raise SolverError(str(answer))

    def _ask(self, question: "Question", limits: Limits, reported: list[Any]) -> object | None:
        """The process's answer; None if it had to be killed. What it reports on the way is added to `reported`."""
        with self._lock:
            process = self._running()
            try:
                _send(process.stdin, pickle.dumps(question))
                deadline = time.monotonic() + limits.seconds + GRACE_SECONDS
                while (data := _receive(process, deadline)) is not None:
                    found: object = pickle.loads(data)
                    if not isinstance(found, Incumbent | JointIncumbent):
                        return found
                    # The last is the best: the others would only fill memory.
                    reported[:] = [found]
            except (BrokenPipeError, EOFError) as error:
                raise SolverError(self._last_words()) from error
            self._stop()
            return None

    def close(self) -> None:
        """End the process; a later solve starts a new one."""
        with self._lock:
            self._stop()

    def __enter__(self) -> "SolverProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._process is None or self._process.poll() is not None:
            self._stop()
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "splitinference.core.planner.process", str(self._memory_mib), str(self._niceness)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **threads},
            )
            try:
                ready = _receive(self._process, time.monotonic() + START_SECONDS)
            except EOFError as error:
                raise SolverError(self._last_words()) from error
            if ready is None:
                self._stop()
                raise SolverError(f"the solver's process did not start within {START_SECONDS:.0f} s")
        return self._process

    def _last_words(self) -> str:
        process, self._process = self._process, None
        if process is None:
            return "the solver's process is gone"
        process.kill()
        _, words = process.communicate()
        tail = words.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
        return f"the solver's process ended: {tail[0]}"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def solve_several_in_child(problems: Sequence[Problem], limits: Limits = DEFAULT_LIMITS, *, jointly: bool) -> JointOutcome:
    """Solve several problems on the same nodes in a fresh process."""
    with SolverProcess(limits.memory_mib) as process:
        return process.solve_several(problems, limits, jointly=jointly)


def solve_in_child(problem: Problem, limits: Limits = DEFAULT_LIMITS, hint: Plan | None = None) -> Outcome:
    """Solve one problem in a fresh process; use a SolverProcess to solve several without paying for its start each time."""
    with SolverProcess(limits.memory_mib) as process:
        return process.solve(problem, limits, hint)


def _send(stream: IO[bytes] | None, payload: bytes) -> None:
    if stream is None:
        raise BrokenPipeError
    stream.write(_LENGTH.pack(len(payload)) + payload)
    stream.flush()


def _receive(process: "subprocess.Popen[bytes]", deadline: float) -> bytes | None:
    """The next message; None when the deadline has passed. Raises EOFError when the process has ended."""
    if process.stdout is None:
        raise EOFError
    descriptor, data, wanted = process.stdout.fileno(), b"", _LENGTH.size
    while len(data) < wanted:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            return None
        # Never beyond this message: the next one may be there already.
        piece = os.read(descriptor, min(1 << 20, wanted - len(data)))
        if not piece:
            raise EOFError
        data += piece
        if wanted == _LENGTH.size and len(data) >= wanted:
            wanted += _LENGTH.unpack_from(data)[0]
    return data[_LENGTH.size :]


def serve(memory_mib: int, niceness: int) -> None:
    """The process's life: answer problems from standard input until it ends."""
    import resource

    os.nice(niceness)
    cap = memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    out, inward = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # a library that prints must not disturb the messages
    # Loaded before it is ready, so that no problem pays for it.
    from splitinference.core.planner import solver

    def interrupt(_number: int, _frame: object) -> None:
        raise solver.DeadlineError

    def report(found: Incumbent | JointIncumbent) -> None:
        # A message that is interrupted in its middle could not be read.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGALRM,))
        try:
            _send(out, pickle.dumps(found))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))

    signal.signal(signal.SIGALRM, interrupt)
    _send(out, b"ready")
    while len(head := inward.read(_LENGTH.size)) == _LENGTH.size:
        question = pickle.loads(inward.read(_LENGTH.unpack(head)[0]))
        _send(out, pickle.dumps(_answered(question, memory_mib, report)))


def _answered(question: Question, memory_mib: int, report: Callable[[Any], None]) -> object:
    """The answer to a question, or in words why there is none. Whatever does not look at the clock is interrupted."""
    from splitinference.core.planner.solver import DeadlineError

    found: object | None = None
    try:
        signal.setitimer(signal.ITIMER_REAL, question[2] + INTERRUPT_SECONDS)
        found = _answer(question, memory_mib, report)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except DeadlineError:
        # What was reported is the answer, unless there is one by now.
        return found
    except MemoryError:
        return f"out of memory: the cap is {memory_mib} MiB"
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent must hear of it
        return f"{type(error).__name__}: {error}"
    return found


def _answer(question: Question, memory_mib: int, report: Callable[[Any], None]) -> Outcome | JointOutcome:
    from splitinference.core.planner.joint import solve_in_turn, solve_jointly
    from splitinference.core.planner.solver import solve

    how, texts, seconds, hint = question
    problems, limits = tuple(Problem.model_validate_json(text) for text in texts), Limits(seconds, memory_mib)
    if how == "one":
        return solve(problems[0], limits, Plan.model_validate_json(hint) if hint else None, report)
    if how == "jointly":
        return solve_jointly(problems, limits, report)
    return solve_in_turn(problems, limits)


if __name__ == "__main__":
    serve(*map(int, sys.argv[1:]))
