"""The script that reads a model's shape from a hub, run as a pod runs it, and read back as the operator does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.controller.manifests import profile_pod
from splitinference.inpod import script
from splitinference.inpod.read_hub import FIRST_BYTES
from splitinference_modelfiles.stored.digests import folder_digests
from splitinference_modelfiles.stored.folder import tensor_tables
from tests.inpod.hub import COMMIT, FakeHub, a_hub
from tests.inpod.test_read_model import safetensors

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "a.safetensors": safetensors({"model.embed_tokens.weight": ("BF16", [8, 2], 32), "w": ("U8", [4 * FIRST_BYTES], 4 * FIRST_BYTES)}),
    "b.safetensors": safetensors({f"model.layers.{i}.w": ("F32", [2], 8) for i in range(4000)}),
    "onnx/c.safetensors": b"elsewhere",
}


def read(hub: FakeHub, token: str = "", revision: str = "main", *expected: str) -> subprocess.CompletedProcess[str]:
    text = script("read_hub").replace("time.sleep(min(2**attempt, 20))", "time.sleep(0)")  # a test need not wait
    command = [sys.executable, "-c", text, hub.url, "owner/model", revision, *expected]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HF_TOKEN": token})


def unpacked(done: subprocess.CompletedProcess[str]) -> tuple[dict[str, object], dict[str, object]]:
    assert done.returncode == 0, done.stderr
    packed = profile_pod.from_log(done.stdout)
    assert packed is not None
    found = profile_pod.unpack(packed)
    assert found is not None
    return dict(found.config), {name: [t.dtype, list(t.shape), t.bytes] for name, t in found.tensors.items()}


def test_configuration_and_tables_are_read_without_the_weights():
    with a_hub(FILES) as hub:
        config, tensors = unpacked(read(hub))
        assert sum(int(r.headers["range"].split("-")[1]) + 1 for r in hub.stored) < 4 * FIRST_BYTES
    assert config == {"model_type": "llama"}
    assert tensors["model.embed_tokens.weight"] == ["BF16", [8, 2], 32]
    assert len(tensors) == 4002, "a table longer than the first request is read to its end"


def test_the_token_is_for_the_hub_alone_and_never_printed():
    with a_hub(FILES, token="hf_secret") as hub:
        done = read(hub, "hf_secret\n")
        assert all(request.headers["authorization"] == "Bearer hf_secret" for request in hub.asked)
        assert hub.stored
        assert not any("authorization" in request.headers for request in hub.stored)
    unpacked(done)
    assert "hf_secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_a_gated_model_needs_its_token(token):
    with a_hub(FILES, token="hf_secret", gated=True) as hub:
        done = read(hub, token)
    assert done.returncode == 1
    assert "the hub says 401" in done.stderr
    assert "is the token right" in done.stderr
    assert "hf_wrong" not in done.stderr


@pytest.mark.parametrize("missing", ["config.json", "a.safetensors"])
def test_a_repository_without_a_model_is_said(missing):
    """Only this file is there."""
    with a_hub({missing: b"{}"}) as hub:
        done = read(hub)
    assert done.returncode == 1
    lacks = "config.json" if missing != "config.json" else "*.safetensors file"
    assert f"owner/model at main: it has no {lacks} in its root" in done.stderr


def test_a_revision_that_is_not_there_is_said():
    with a_hub(FILES) as hub:
        done = read(hub, revision="v2")
    assert done.returncode == 1
    assert "the hub says 404" in done.stderr


CUT = safetensors({"w": ("F32", [1000], 4000)})[:-10]
BAD = {
    "no table": b"GGUF",
    "an endless table": (1 << 40).to_bytes(8, "little") + b"{}",
    "no json": (4).to_bytes(8, "little") + b"{{{{",
    "a list": (2).to_bytes(8, "little") + b"[]",
    "strange entries": (16).to_bytes(8, "little") + b'{"w": {"a": 1} }',
    "nested": (100_000).to_bytes(8, "little") + b"[" * 100_000,
    "cut short": CUT,
}


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_file_is_named(what):
    with a_hub({"config.json": b"{}", "w.safetensors": BAD[what]}) as hub:
        done = read(hub)
    assert done.returncode == 1
    assert "w.safetensors" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("config", [b"[]", b"nonsense", b'{"a": "' + b"x" * (5 << 20) + b'"}', b"[" * 1_000_000])
def test_a_configuration_that_is_none_is_said(config):
    with a_hub({"config.json": config, "w.safetensors": FILES["b.safetensors"]}) as hub:
        done = read(hub)
    assert done.returncode == 1
    assert "owner/model at main: " in done.stderr
    assert len(done.stderr) < 600


def test_tables_that_cannot_be_kept_are_said():
    random = {f"{os.urandom(40).hex()}.w": ("F32", [2], 8) for _ in range(20_000)}
    with a_hub({"config.json": json.dumps({"a": 1}).encode(), "w.safetensors": safetensors(random)}) as hub:
        done = read(hub)
    assert done.returncode == 1
    assert "bytes packed" in done.stderr


MAP = {"model.embed_tokens.weight": "x.safetensors", "model.norm.weight": "y.safetensors"}
SHARDED = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors.index.json": json.dumps({"weight_map": MAP}).encode(),
    "x.safetensors": safetensors({"model.embed_tokens.weight": ("BF16", [8, 2], 32)}),
    "y.safetensors": safetensors({"model.norm.weight": ("BF16", [2], 4)}),
    "consolidated.safetensors": safetensors({"tok_embeddings.weight": ("BF16", [8, 2], 32)}),
    "tokenizer.model": b"x",
}


def test_the_index_decides_whatever_lies_beside_its_files():
    with a_hub(SHARDED) as hub:
        done = read(hub)
        assert not any("consolidated" in request.path for request in hub.asked)
    assert set(unpacked(done)[1]) == set(MAP)
    packed = profile_pod.from_log(done.stdout)
    assert packed is not None
    kept = profile_pod.unpack(packed)
    assert kept is not None
    assert kept.files == tuple(sorted(SHARDED))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"y.safetensors": None}, "names y.safetensors, which the model does not have"),
        ({"y.safetensors": SHARDED["consolidated.safetensors"]}, "says that model.norm.weight is in y.safetensors, which does not have it"),
        ({"model.safetensors.index.json": b"[]"}, "has no weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../a.safetensors"}}'}, "of the same folder"),
        ({"y.safetensors": SHARDED["y.safetensors"] + b"x"}, "1 bytes belong to no tensor"),
        (dict.fromkeys(("model.safetensors.index.json", "x.safetensors", "y.safetensors")), "has its publisher's own tensor names"),
    ],
)
def test_a_repository_that_contradicts_itself_is_refused_with_file_and_reason(change, said):
    files = {name: data for name, data in (SHARDED | change).items() if data is not None}
    with a_hub(files) as hub:
        done = read(hub)
    assert done.returncode == 1
    assert said in done.stderr


# --- what names the content -----------------------------------------------------------------------------------------------------------


def digest_of(folder: Path) -> str:
    """As a user computes it from the files."""
    for name, content in FILES.items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    found = folder_digests(str(folder), *tensor_tables(str(folder)), None)
    assert found is not None
    return found.root


def kept(done: subprocess.CompletedProcess[str]) -> profile_pod.Kept:
    assert done.returncode == 0, done.stderr
    found = profile_pod.unpack(profile_pod.from_log(done.stdout) or "")
    assert found is not None
    return found


def test_the_commit_that_the_revision_means_is_handed_over():
    with a_hub(FILES) as hub:
        assert (kept(read(hub)).commit, kept(read(hub)).root) == (COMMIT, "")


def test_with_an_expected_digest_all_weights_are_read_once_and_compared(tmp_path):
    with a_hub(FILES) as hub:
        found = kept(read(hub, "", "main", digest_of(tmp_path)))
    assert (found.commit, found.root) == (COMMIT, digest_of(tmp_path))


def test_a_repository_with_other_weights_is_refused_with_both_digests(tmp_path):
    expected = digest_of(tmp_path)
    with a_hub(FILES | {"a.safetensors": FILES["a.safetensors"][:-1] + b"x"}) as hub:
        done = read(hub, "", "main", expected)
    assert (done.returncode, done.stdout) == (1, "")
    assert "ModelDigestMismatch: the model's digest is sha256:" in done.stderr
    assert done.stderr.strip().endswith(f"expected {expected}")


def test_weights_that_end_too_early_are_not_taken_for_the_model(tmp_path):
    expected = digest_of(tmp_path)
    with a_hub(FILES) as hub:
        hub.breaks_after = 5 * FIRST_BYTES
        assert kept(read(hub, "", "main", expected)).root == expected, "it is asked again"
