"""Runs tests against faults in one process: tests are collected once, and each fault has a fork of it. Used by tests/mutants.py.

    python mutant_runner.py RESULTS.json --seed 0 --sample 200        (in the copy that tests/mutants.py prepares)

First all tests run once, to learn which functions each of them reaches and how much processor time it takes. A fault meets the tests that
reach its function, the quickest first, until one fails. Limits are in processor time, so that a busy machine changes no result. The order
of faults is random, from a seed, and each is tried to its end before the next one begins: a run that ends early has tried a fair sample.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

KILLED, SURVIVED, TIMEOUT, NO_TESTS = "killed", "survived", "timeout", "no tests"
LEARNED = Path("learned.json").absolute()
"""What the first run of the tests showed, for further runs in the same copy."""


def processor_seconds() -> float:
    """What this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass
class Runner:
    """A pytest plugin in place of the usual loop over tests."""

    faults: list[str]
    of: int
    results: Path
    until: float
    jobs: int
    outcome: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    reached_by: defaultdict[str, list[pytest.Item]] = field(default_factory=lambda: defaultdict(list))
    running: dict[int, str] = field(default_factory=dict)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """All of it. The faults' tests say nothing."""
        self._learn(session.items)
        for fault in self.faults:
            if time.monotonic() > self.until:
                break
            self._start(fault)
        while self.running:
            self._reap()
        self._save()
        return True

    def _learn(self, items: list[pytest.Item]) -> None:
        from mutmut.mutation.trampoline import set_mutant_under_test
        from mutmut.state import state

        if LEARNED.exists():
            learned = json.loads(LEARNED.read_text("utf-8"))
            by_id = {item.nodeid: item for item in items}
            self.seconds = learned["seconds"]
            for name, tests in learned["reached_by"].items():
                self.reached_by[name] = [by_id[test] for test in tests]
            return
        set_mutant_under_test("stats")
        os.environ["MUTMUT_DEPENDENCY_DEPTH"] = "-1"
        for item in items:
            state()._stats.clear()
            before = processor_seconds()
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                raise pytest.UsageError(f"{item.nodeid} fails without any fault")
            self.seconds[item.nodeid] = processor_seconds() - before
            for name in state()._stats:
                self.reached_by[name].append(item)
        set_mutant_under_test("")
        reached = {name: [item.nodeid for item in tests] for name, tests in self.reached_by.items()}
        LEARNED.write_text(json.dumps({"seconds": self.seconds, "reached_by": reached}), "utf-8")
        sys.stderr.write(f"{len(items)} tests take {sum(self.seconds.values()):.0f} s; {len(self.faults)} faults\n")

    def _tests(self, fault: str) -> list[pytest.Item]:
        found = self.reached_by.get(fault.rpartition("__mutmut_")[0], [])
        return sorted(found, key=lambda item: self.seconds[item.nodeid])

    def _start(self, fault: str) -> None:
        tests = self._tests(fault)
        if not tests:
            self.outcome[fault] = NO_TESTS
            return
        while len(self.running) >= self.jobs:
            self._reap()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            try:
                os._exit(self._try(fault, tests))
            finally:
                os._exit(2)
        self.running[child] = fault

    def _try(self, fault: str, tests: list[pytest.Item]) -> int:
        from mutmut.mutation.trampoline import set_mutant_under_test

        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        signal.signal(signal.SIGXCPU, signal.SIG_DFL)
        set_mutant_under_test(fault)
        for item in tests:
            most = int(processor_seconds() + 5 + 10 * self.seconds[item.nodeid])
            resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=None)):
                return 1
        return 0

    def _reap(self) -> None:
        child, status = os.waitpid(-1, 0)
        if child not in self.running:
            return
        fault = self.running.pop(child)
        if os.WIFSIGNALED(status):
            self.outcome[fault] = TIMEOUT
        else:
            self.outcome[fault] = KILLED if os.WEXITSTATUS(status) else SURVIVED
        if len(self.outcome) % 5 == 0:
            self._save()

    def _save(self) -> None:
        self.results.write_text(json.dumps({"of": self.of, "outcome": self.outcome}, indent=1))


def faults_of(folder: Path) -> Iterator[str]:
    """The faults that mutmut made below a folder."""
    for meta in sorted(folder.rglob("*.meta")):
        yield from json.loads(meta.read_text("utf-8"))["exit_code_by_key"]


def make_faults() -> None:
    """mutmut's copy of the code, in which every function has its faults beside it."""
    from mutmut import __main__ as mutmut

    Path("mutants").mkdir(exist_ok=True)
    os.environ["MUTANT_UNDER_TEST"] = "mutant_generation"
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(1)


def main() -> int:
    """Make the faults, learn, try."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=24 * 60.0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--tests", nargs="+", required=True)
    given: Any = parser.parse_args()
    if not Path("mutants").exists():  # else they are there from a run before
        make_faults()
    there = list(faults_of(Path("mutants")))
    faults = random.Random(given.seed).sample(there, len(there))[: given.sample or None]
    results = given.results.resolve()
    os.chdir("mutants")
    sys.path[0:1] = [os.path.abspath("src"), os.getcwd()]  # in place of the folder of this file
    runner = Runner(faults, len(there), results, time.monotonic() + 60 * given.minutes, given.jobs)
    without = [word for plugin in ("cacheprovider", "xdist", "terminal") for word in ("-p", f"no:{plugin}")]
    return int(pytest.main(["-o", "addopts=", *without, *given.tests], plugins=[runner]))


if __name__ == "__main__":
    sys.exit(main())
