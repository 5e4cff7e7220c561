"""Files and folders stay small enough to be read: the limits of CONTRIBUTING, and the few that may be larger, each with its reason."""

import json
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pytest

from tests.test_repository import ROOT, tracked

MOST_LINES = 400
MOST_MODULES = 14
"""About a dozen. Not counted: `__init__.py`, `__main__.py` and `conftest.py`, which are there once for a folder."""
UNCOUNTED = ("__init__.py", "__main__.py", "conftest.py")

LONG_FILES: dict[str, str] = {}
LARGE_FOLDERS = {
    "e2e": "make, CI and the documentation name these programs and tests by their path",
    "tests": "programs of make, which the documentation names by their path, and tests of the repository as a whole",
    "tests/segment": "it is copied into the segment image, where its files import each other by their bare names",
}


def too_large(sizes: Mapping[str, int], most: int, allowed: Mapping[str, str]) -> list[str]:
    """What is above the limit without being allowed to, and what is allowed though it is within the limit."""
    above = {name for name, size in sizes.items() if size > most}
    found = [f"{name}: {sizes[name]}, {most} at most" for name in sorted(above - set(allowed))]
    return found + [f"{name}: within the limit, so its exception goes" for name in sorted(set(allowed) - above)]


def modules() -> list[PurePosixPath]:
    return [PurePosixPath(path.relative_to(ROOT).as_posix()) for path in tracked("*.py") if path.exists()]


def test_no_file_is_too_long_to_be_read() -> None:
    lines = {str(name): len((ROOT / name).read_text("utf-8").splitlines()) for name in modules()}
    assert too_large(lines, MOST_LINES, LONG_FILES) == []


def test_no_folder_has_too_many_files_to_be_known() -> None:
    counted = Counter(str(name.parent) for name in modules() if name.name not in UNCOUNTED)
    assert too_large(counted, MOST_MODULES, LARGE_FOLDERS) == []


COMPLEXITY = ("C901", "PLR0912", "PLR0915")
MOST_COMPLEX_FILES = 8


def test_exceptions_from_the_limits_of_complexity_are_few_have_reasons_and_do_not_outlive_them() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    ignored = tomllib.loads(text)["tool"]["ruff"]["lint"]["per-file-ignores"]
    allowed = {(name, code) for name, codes in ignored.items() for code in codes if code in COMPLEXITY}
    files = sorted({name for name, _ in allowed})
    assert len(files) <= MOST_COMPLEX_FILES
    lines = {line.split('"')[1]: line for line in text.splitlines() if line.startswith('"')}
    assert [name for name in files if "  # " not in lines[name]] == [], "each has its reason beside it"
    ruff = Path(sys.executable).with_name("ruff")
    words = ["check", "--isolated", "--no-cache", "--exit-zero", "--output-format", "json", "--select", ",".join(COMPLEXITY)]
    said = subprocess.run([ruff, *words, "--config", "lint.mccabe.max-complexity=12", *files], cwd=ROOT, check=True, capture_output=True)
    needed = {
        (PurePosixPath(found["filename"]).relative_to(ROOT.as_posix()).as_posix(), found["code"]) for found in json.loads(said.stdout)
    }
    assert needed == allowed


def test_the_process_of_the_operator_does_without_or_tools() -> None:
    """Only its solver's process imports it: pyproject.toml allows imports inside functions there for this alone."""
    script = "import sys, splitinference.core.planner, splitinference.controller.reconcile.reconcile\nsys.exit('ortools' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("size", "allowed", "found"),
    [
        (MOST_LINES, {}, []),
        (MOST_LINES + 1, {}, ["a.py: 401, 400 at most"]),
        (MOST_LINES + 1, {"a.py": "a reason"}, []),
        (MOST_LINES, {"a.py": "a reason"}, ["a.py: within the limit, so its exception goes"]),
    ],
)
def test_the_limit_is_kept_on_either_side_and_exceptions_do_not_outlive_their_reason(
    size: int, allowed: dict[str, str], found: list[str]
) -> None:
    assert too_large({"a.py": size}, MOST_LINES, allowed) == found
