"""Small faults, one at a time, in the modules that decide and make transitions: do the tests notice each of them?

    python -m tests.mutants [metrics_settling avoid_hot_targets …] [--sample 200 --seed 0]

mutmut makes the faults, in a copy of code and tests below build/mutants; tests/mutant_runner.py tries them, each with the tests that reach
its function, in forks of one process. `--sample` takes so many at random, the same ones for the same seed; `--minutes` ends a run early.
Either way the share is that of a fair sample, and the last line has its confidence interval.
Faults that no test can notice, because the program behaves the same with them, are listed with their reasons in mutants.toml. The exit
status is 1 when fewer than 90 % of the others are noticed (of a sample: when even the upper end of the interval is below), or when all
faults were tried and an entry of the list fits none.
"""

import argparse
import json
import math
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
CORE = REPOSITORY / "operator/splitinference/core"
MODULES = tuple(
    ("" if folder == "decide" else f"../{folder}/") + path.relative_to(CORE / folder).with_suffix("").as_posix()
    for folder in ("decide", "transition")
    for path in sorted((CORE / folder).rglob("*.py"))
    if path.name != "__init__.py"
)
"""All of both folders, as paths below core/decide."""
TESTS = ("tests/core/decide", "tests/core/transition", "tests/core/test_second_copies.py")
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


@dataclass(frozen=True)
class Tried:
    """What became of each fault that was tried, by its name; out of how many, and which seed chose them."""

    outcome: dict[str, str]
    of: int
    seed: int

    @property
    def whole(self) -> bool:
        """Whether no fault was left out."""
        return len(self.outcome) == self.of


def tried(jobs: int, minutes: float, sample: int, seed: int) -> Tried:
    """Try the faults. Raises CalledProcessError where tests fail without any fault."""
    numbers = ["--jobs", str(jobs), "--minutes", str(minutes), "--sample", str(sample), "--seed", str(seed)]
    subprocess.run([sys.executable, "mutant_runner.py", "results.json", *numbers, "--tests", *TESTS], cwd=COPY, check=True)
    return read_results(seed)


def read_results(seed: int) -> Tried:
    """What the last run left."""
    found = json.loads((COPY / "results.json").read_text("utf-8"))
    return Tried(found["outcome"], found["of"], seed)


def interval(noticed: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927, J. Am. Stat. Assoc. 22:209); 0 to 1 where nothing was tried."""
    if not of:
        return 0.0, 1.0
    z, share = 1.959964, noticed / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return max(0.0, (middle - half) / (1 + z * z / of)), min(1.0, (middle + half) / (1 + z * z / of))


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
    parser.add_argument("--sample", type=int, default=0, help="try only so many faults, chosen at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the random order (default: 0)")
    given = parser.parse_args()
    if wrong := set(given.modules) - set(MODULES):
        parser.error(f"unknown modules: {', '.join(sorted(wrong))}")
    modules = given.modules or list(MODULES)
    prepare(modules)
    return report(modules, tried(given.jobs, given.minutes, given.sample, given.seed))


def report(modules: list[str], found: Tried) -> int:
    """Figures by module; the faults that nobody noticed and that the list does not explain. The answer is the exit status."""
    equivalents = [entry for entry in listed() if entry.module in modules]
    total, noticed, explained, used, open_faults = Counter[str](), Counter[str](), Counter[str](), set[Equivalent](), []
    for fault, state in found.outcome.items():
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
    unused = [f"mutants.toml: no such fault survives: {e.module}: {e.becomes}" for e in equivalents if found.whole and e not in used]
    of = total.total() - explained.total()
    low, high = interval(noticed.total(), of)
    share = noticed.total() / max(1, of)
    counted = f"{total.total()} of {found.of} faults tried, seed {found.seed}"
    lines.append(f"{counted}: {noticed.total()} of {of} noticed, {share:.1%}")
    if not found.whole:
        lines.append(f"95 % confidence interval: {low:.1%} to {high:.1%}")
    sys.stdout.write("\n".join([*open_faults, *unused, *lines, ""]))
    return 1 if unused or not total or (share if found.whole else high) < LEAST_SHARE else 0


if __name__ == "__main__":
    sys.exit(main())
