"""The plugin's archive and its krew manifest: whole, the same each time, and the launcher says what it lacks."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests import plugin_archive
from tests.release_facts import versions

VERSION = versions()["package"]


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    plugin_archive.main(tmp_path / "out")
    folder = tmp_path / "plugin"
    with tarfile.open(tmp_path / "out" / f"kubectl-split-{VERSION}.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    return folder


def ready(unpacked: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a user whose environment was made before: this Python, with all that is installed here."""
    home = tmp_path / "cache" / "splitinference" / "plugin" / f"{VERSION}-{sys.version_info[0]}.{sys.version_info[1]}"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (home / "bin" / "python").chmod(0o755)
    (home / "ready").touch()
    return {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "SPLITINFERENCE_PYTHON": sys.executable}


def test_the_archive_runs_and_is_the_plugin(unpacked: Path, tmp_path: Path):
    variables = ready(unpacked, tmp_path)
    link = tmp_path / "bin" / "kubectl-split"  # as krew installs it
    link.parent.mkdir()
    link.symlink_to(unpacked / "kubectl-split")
    ran = subprocess.run([str(link), "--version"], env=variables, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == VERSION
    where = "import splitinference; print(splitinference.__file__)"
    lib = {**variables, "PYTHONPATH": str(unpacked / "lib")}
    assert str(unpacked) in subprocess.run([sys.executable, "-c", where], env=lib, capture_output=True, text=True, check=True).stdout
    helped = subprocess.run([str(link), "statsu"], env=variables, capture_output=True, text=True, check=False)
    assert helped.returncode == 2
    assert helped.stderr.startswith("Usage: kubectl split ")


def test_the_archive_is_the_same_each_time_and_has_nothing_compiled():
    assert plugin_archive.archive(VERSION) == plugin_archive.archive(VERSION)
    names = [name for name, _, _ in plugin_archive.members(VERSION)]
    assert "lib/splitinference/cli/main.py" in names
    assert "lib/splitinference/catalogue/__init__.py" in names
    assert not [name for name in names if name.endswith((".pyc", ".so"))]


def test_the_manifest_is_of_this_archive_and_as_krew_wants_it(tmp_path: Path):
    plugin_archive.main(tmp_path, "https://example.com/{version}/{name}")
    found = yaml.safe_load((tmp_path / "split.yaml").read_text())
    digest = hashlib.sha256((tmp_path / f"kubectl-split-{VERSION}.tar.gz").read_bytes()).hexdigest()
    assert {platform["sha256"] for platform in found["spec"]["platforms"]} == {digest}
    assert {platform["uri"] for platform in found["spec"]["platforms"]} == {f"https://example.com/{VERSION}/kubectl-split-{VERSION}.tar.gz"}
    assert re.fullmatch(r"v\d+\.\d+\.\d+", found["spec"]["version"])
    assert len(found["spec"]["shortDescription"]) <= 50
    assert found["metadata"]["name"] == "split"


def test_every_requirement_has_hashes_and_the_pins_are_those_of_the_tests():
    pins = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (plugin_archive.ROOT / "requirements-plugin.txt").read_text(), re.MULTILINE))
    tested = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (plugin_archive.ROOT / "requirements-dev.txt").read_text(), re.MULTILINE))
    assert pins.items() <= tested.items()
    assert {"click", "rich", "kubernetes", "ortools", "pydantic"} <= pins.keys()


def test_without_python_the_launcher_says_what_to_install(unpacked: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for program in ("dirname", "readlink", "cat"):
        (tmp_path / "empty" / program).symlink_to(next(p for p in (Path("/usr/bin") / program, Path("/bin") / program) if p.exists()))
    variables = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path)}
    ran = subprocess.run(["/bin/sh", str(unpacked / "kubectl-split"), "--help"], env=variables, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "Python 3.11 or newer is missing" in ran.stderr


def test_requirements_that_cannot_be_had_leave_nothing_half_made(unpacked: Path, tmp_path: Path):
    (unpacked / "requirements.txt").write_text("nothing==1 --hash=sha256:" + "0" * 64 + "\n")
    variables = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "c"),
        "SPLITINFERENCE_PYTHON": sys.executable,
        "PIP_INDEX_URL": "http://127.0.0.1:1/",
    }
    variables |= {"PIP_RETRIES": "0", "PIP_NO_INDEX": "1"}
    ran = subprocess.run([str(unpacked / "kubectl-split"), "--help"], env=variables, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "set PIP_INDEX_URL to a mirror" in ran.stderr
    assert list((tmp_path / "c" / "splitinference" / "plugin").iterdir()) == []
