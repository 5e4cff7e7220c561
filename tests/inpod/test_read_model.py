"""The script that reads a model's folder, run as a pod runs it, and read back as the operator does."""

import base64
import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitinference.controller.manifests import profile_pod
from splitinference.inpod import script
from splitinference_modelfiles.stored.digests import folder_digests
from splitinference_modelfiles.stored.folder import tensor_tables
from splitinference_modelfiles.stored.headers import TensorInfo


def safetensors(tensors: dict[str, tuple[str, list[int], int]]) -> bytes:
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape, size) in tensors.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(table).encode()
    return len(header).to_bytes(8, "little") + header + bytes(position)


def a_model(folder: Path, files: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for number in range(files):
        data = safetensors({f"model.layers.{number}.w": ("BF16", [4, 2], 16)})
        (folder / f"model-{number}.safetensors").write_bytes(data)
    return folder


def run(folder: Path, called: str = "/models/m", *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-c", script("read_model"), str(folder), called, *more]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_what_the_pod_prints_is_read_back(tmp_path):
    done = run(a_model(tmp_path / "m"))
    assert done.returncode == 0
    packed = profile_pod.from_log("a warning of the image\n" + done.stdout + "\n")
    assert packed is not None
    assert profile_pod.unpack(packed) == profile_pod.Kept(
        {"model_type": "llama"},
        {f"model.layers.{i}.w": TensorInfo("BF16", (4, 2), 16) for i in range(2)},
        ("config.json", "model-0.safetensors", "model-1.safetensors"),
    )


def digest_of(folder: Path) -> str:
    found = folder_digests(str(folder), *tensor_tables(str(folder)), None)
    assert found is not None
    return found.root


def test_with_time_for_it_the_digest_is_read_too(tmp_path):
    folder = a_model(tmp_path / "m")
    packed = profile_pod.from_log(run(folder, "/models/m", "20").stdout)
    assert packed is not None
    kept = profile_pod.unpack(packed)
    assert kept is not None
    assert kept.root == digest_of(folder)


def test_a_model_with_the_expected_digest_is_read_however_long_it_takes(tmp_path):
    folder = a_model(tmp_path / "m")
    done = run(folder, "/models/m", "0", digest_of(folder))
    assert done.returncode == 0, done.stderr
    assert digest_of(folder) in json.dumps(unpacked(done.stdout))


def test_a_model_with_another_digest_is_refused_with_both(tmp_path):
    folder = a_model(tmp_path / "m")
    expected = digest_of(folder)
    with (folder / "model-1.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    done = run(folder, "/models/m", "20", expected)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"ModelDigestMismatch: the model's digest is {digest_of(folder)}, expected {expected}\n"


def test_a_list_of_digests_that_was_damaged_is_read_again(tmp_path):
    whole = unpacked(run(a_model(tmp_path / "m"), "/models/m", "20").stdout)
    whole["content"]["tensors"]["model.layers.0.w"] = "0" * 64
    assert profile_pod.unpack(profile_pod.pack(whole["config"], whole["tensors"], whole["files"], whole["content"])) is None


def unpacked(out: str) -> dict[str, Any]:
    packed = profile_pod.from_log(out)
    assert packed is not None
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return found


def test_a_log_that_is_cut_is_not_taken(tmp_path):
    out = run(a_model(tmp_path / "m")).stdout
    assert profile_pod.from_log(out[: len(out) // 2]) is None
    assert profile_pod.from_log("") is None


def test_a_table_of_ten_thousand_tensors_fits_in_a_config_map():
    tensors = {f"model.layers.{i}.mlp.experts.{j}.w": ["BF16", [4096, 1408], 11534336] for i in range(100) for j in range(100)}
    assert len(profile_pod.pack({}, tensors)) < 900_000


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda m: (m / "config.json").unlink(), "config.json"),
        (lambda m: (m / "config.json").write_text("{"), "Expecting property name"),
        (lambda m: [f.unlink() for f in m.glob("*.safetensors")], "no *.safetensors file"),
        (lambda m: (m / "model-0.safetensors").write_bytes(b"<html>not a model</html>"), "not a safetensors file"),
        (lambda m: (m / "model-1.safetensors").write_bytes((m / "model-1.safetensors").read_bytes()[:-8]), "cut short"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_users_path(tmp_path, spoil, said):
    folder = a_model(tmp_path / "m")
    spoil(folder)
    done = run(folder)
    assert done.returncode == 1
    assert said in done.stderr
    assert str(tmp_path) not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
