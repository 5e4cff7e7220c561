"""Capabilities a machine lacks, and the runtime that does not ask for them."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.machine.capabilities import NAMES, missing, runtime_script


def test_a_full_bounding_set_lacks_nothing():
    assert missing(f"Name:\tx\nCapBnd:\t{(1 << len(NAMES)) - 1:016x}\n", len(NAMES) - 1) == ()


def test_the_bit_that_is_not_set_is_named():
    assert missing("CapBnd:\t000001fffeffffff\n", 40) == ("CAP_SYS_RESOURCE",)


def test_capabilities_the_kernel_does_not_know_are_not_missed():
    assert missing("CapBnd:\t000000ffffffffff\n", 39) == ()


@pytest.fixture
def runtime(tmp_path: Path) -> Path:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    real = tmp_path / "runc"
    real.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    real.chmod(0o755)
    script = tmp_path / "runtime"
    script.write_text(runtime_script(str(real), ("CAP_SYS_RESOURCE",)))
    script.chmod(0o755)
    return script


def capabilities(*names: str) -> dict[str, list[str]]:
    return {"bounding": list(names), "effective": list(names)}


@pytest.mark.parametrize(
    "words", [["create", "--bundle", "{}", "name"], ["--root", "/r", "create", "--bundle={}", "name"], ["run", "-b", "{}", "name"]]
)
def test_a_container_is_asked_for_without_what_is_missing(runtime: Path, tmp_path: Path, words: list[str]):
    bundle = tmp_path / "a bundle"
    bundle.mkdir()
    spec = {
        "process": {"args": ["CAP_SYS_RESOURCE"], "capabilities": capabilities("CAP_CHOWN", "CAP_SYS_RESOURCE")},
        "root": {"path": "rootfs"},
    }
    (bundle / "config.json").write_text(json.dumps(spec))
    given = [word.format(bundle) for word in words]
    said = subprocess.run([runtime, *given], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == given
    spec["process"]["capabilities"] = capabilities("CAP_CHOWN")
    assert json.loads((bundle / "config.json").read_text()) == spec


def test_an_exec_is_asked_for_without_what_is_missing(runtime: Path, tmp_path: Path):
    process = tmp_path / "process.json"
    process.write_text(json.dumps({"args": ["sh"], "capabilities": capabilities("CAP_SYS_RESOURCE", "CAP_KILL")}))
    subprocess.run([runtime, "exec", "--process", process, "name"], check=True, capture_output=True)
    assert json.loads(process.read_text()) == {"args": ["sh"], "capabilities": capabilities("CAP_KILL")}


def test_a_process_without_capabilities_stays_as_it_is(runtime: Path, tmp_path: Path):
    process = tmp_path / "process.json"
    process.write_text(json.dumps({"args": ["sh"]}))
    subprocess.run([runtime, "exec", "--process", process, "name"], check=True, capture_output=True)
    assert json.loads(process.read_text())["args"] == ["sh"]
