"""Small faults, one at a time, in the modules that decide and make transitions: do the tests notice each of them?

    python -m tests.mutants [metrics_settling avoid_hot_targets …]

mutmut makes the faults, in a copy of code and tests below build/mutants; tests/mutant_runner.py tries them. With `--minutes`, it stops
after that time. The order is random, so the shares are those of a fair sample.
Faults that no test can notice, because the program behaves the same with them, are listed with their reasons in mutants.toml. The exit
status is 1 when fewer than 90 % of the others are noticed, or when an entry of the list fits no fault any more.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
COPY = REPOSITORY / "build/mutants"
LISTED = Path(__file__).with_suffix(".toml")
LEAST_SHARE = 0.9
DECIDE = "src/splitinference/core/decide"
MODULES = (
    *("base/compare", "base/decision", "base/policy", "base/triggers", "base/validated_solver"),
    *("approved", "avoid_hot_targets", "decide", "early_load_signal", "mandatory", "metrics_settling", "optional", "pipelines"),
    *("retry_backoff", "stabilization_window", "feasibility/capacity_memory", "feasibility/prefetch_targets"),
    "feasibility/reachable_plans",
    *("feasibility/restrict", "../transition/dry_run", "../transition/state", "../transition/steps"),
)
"""Paths below core/decide."""
TESTS = ("tests/core/decide", "tests/core/transition")
NOTICED = ("killed", "timeout")
CONFIGURATION = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = {modules}
"""


@dataclass(frozen=True)
class Equivalent:
    """A change of one line that changes nothing, and why. `was` and `becomes` are lines without their indentation."""

    module: str
    was: str
    becomes: str
    why: str


def listed() -> list[Equivalent]:
    """The faults that no test can notice."""
    return [Equivalent(**entry) for entry in tomllib.loads(LISTED.read_text("utf-8"))["equivalent"]]


def unlisted(modules: tuple[str, ...] = MODULES) -> list[str]:
    """Names of modules that are listed here and are not there."""
    return [name for name in modules if not (REPOSITORY / f"operator/splitinference/core/decide/{name}.py").exists()]


def prepare(modules: list[str]) -> None:
    """A fresh copy of code and tests. The code lies in `src` there: mutmut names modules as Python does only below folders of that name."""
    shutil.rmtree(COPY, ignore_errors=True)
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "operator/splitinference", COPY / "src/splitinference", ignore=skipped)
    shutil.copytree(REPOSITORY / "tests/core", COPY / "tests/core", ignore=skipped)
    shutil.copy(REPOSITORY / "tests/mutant_runner.py", COPY)
    for path in [REPOSITORY / "tests/__init__.py", *REPOSITORY.glob("tests/conftest.py"), *REPOSITORY.glob("tests/examples.py")]:
        shutil.copy(path, COPY / "tests")
    mutated = [os.path.normpath(f"{DECIDE}/{name}.py") for name in modules]
    (COPY / "pyproject.toml").write_text(CONFIGURATION.format(modules=mutated), "utf-8")


def mutmut(*arguments: str) -> str:
    """What the command writes. Raises CalledProcessError where it fails."""
    command = [str(Path(sys.executable).with_name("mutmut")), *arguments]
    return subprocess.run(command, cwd=COPY, stdout=subprocess.PIPE, text=True, check=True).stdout


def tried(jobs: int, minutes: float) -> dict[str, str]:
    """Each fault's name and what became of it. Raises CalledProcessError where tests fail without any fault."""
    words = ["mutant_runner.py", "results.json", "--jobs", str(jobs), "--minutes", str(minutes), "--tests", *TESTS]
    subprocess.run([sys.executable, *words], cwd=COPY, check=True)
    found: dict[str, str] = json.loads((COPY / "results.json").read_text("utf-8"))
    return found


def module_of(fault: str) -> str:
    """The module that a fault is in, as MODULES has it: `splitinference.core.decide.base.policy.x_f__mutmut_1` is in base/policy."""
    folders = fault.split(".")[2:-1]
    return "/".join(folders[1:] if folders[0] == "decide" else ["..", *folders])


def changed(fault: str) -> tuple[str, str]:
    """The lines before and after the fault, without indentation."""
    lines = mutmut("show", fault).splitlines()

    def of(sign: str) -> str:
        return "\n".join(line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3))

    return of("-"), of("+")


def main() -> int:
    """Make the faults, run the tests, say what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="module", help=f"modules of the core; all of {', '.join(MODULES)} by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults that are tested at the same time")
    parser.add_argument("--minutes", type=float, default=24 * 60.0, help="stop after so many (default: a day)")
    given = parser.parse_args()
    if wrong := set(given.modules) - set(MODULES):
        parser.error(f"unknown modules: {', '.join(sorted(wrong))}")
    modules = given.modules or list(MODULES)
    prepare(modules)
    return report(modules, tried(given.jobs, given.minutes))


def report(modules: list[str], found: dict[str, str]) -> int:
    """Figures by module; the faults that nobody noticed and that the list does not explain. The answer is the exit status."""
    equivalents = [entry for entry in listed() if entry.module in modules]
    total, noticed, explained, used, open_faults = Counter[str](), Counter[str](), Counter[str](), set[Equivalent](), []
    for fault, state in found.items():
        module = module_of(fault)
        total[module] += 1
        if state in NOTICED:
            noticed[module] += 1
            continue
        was, becomes = changed(fault)
        same = [entry for entry in equivalents if (entry.module, entry.was, entry.becomes) == (module, was, becomes)]
        explained[module] += bool(same)
        used |= set(same)
        if not same:
            open_faults.append(f"{fault} ({state})\n  - {was}\n  + {becomes}")
    lines = [f"{'module':<28} {'faults':>7} {'noticed':>8} {'equivalent':>11} {'share':>7}"]
    for name in [*sorted(total), "all"]:
        counts = [sum(each.values()) if name == "all" else each[name] for each in (total, noticed, explained)]
        lines.append(f"{name:<28} {counts[0]:>7} {counts[1]:>8} {counts[2]:>11} {counts[1] / max(1, counts[0] - counts[2]):>7.1%}")
    unused = [f"mutants.toml: no such fault survives: {e.module}: {e.becomes}" for e in equivalents if e not in used]
    share = noticed.total() / max(1, total.total() - explained.total())
    sys.stdout.write("\n".join([*open_faults, *unused, *lines, ""]))
    return 1 if unused or not total or share < LEAST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
