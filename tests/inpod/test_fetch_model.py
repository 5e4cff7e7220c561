"""The script that fetches a model, run as an init container runs it, against a hub that behaves as the real one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.inpod import script
from splitinference.inpod.fetch_model import layers_of, wanted_weights
from tests.inpod.hub import FakeHub, a_hub
from tests.inpod.test_read_model import safetensors

FIRST = safetensors({"model.embed_tokens.weight": ("BF16", [8, 2], 32), "model.layers.0.w": ("BF16", [4, 2], 16)})
SECOND = safetensors({"model.layers.1.w": ("BF16", [4, 2], 16), "model.norm.weight": ("BF16", [2], 4)})
INDEX = {
    "weight_map": {
        "model.embed_tokens.weight": "a.safetensors",
        "model.layers.0.w": "a.safetensors",
        "model.layers.1.w": "b.safetensors",
        "model.norm.weight": "b.safetensors",
    }
}
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"t": 1}',
    "README.md": b"read",
    "onnx/model.json": b"{}",
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "a.safetensors": FIRST,
    "b.safetensors": SECOND,
}


def fetch(hub: FakeHub, folder: Path, layers: str, token: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script("fetch_model"), hub.url, "owner/model", "main", str(folder), layers]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HF_TOKEN": token})


def test_a_segment_gets_the_weight_files_of_its_layers(tmp_path):
    with a_hub(FILES) as hub:
        done = fetch(hub, tmp_path / "m", "0:2/4")
    assert done.returncode == 0, done.stderr
    there = {path.name for path in (tmp_path / "m").iterdir()}
    assert there == {"config.json", "tokenizer.json", "model.safetensors.index.json", "a.safetensors"}
    assert (tmp_path / "m" / "a.safetensors").read_bytes() == FIRST


def test_a_middle_segment_gets_neither_embedding_nor_head(tmp_path):
    with a_hub(FILES) as hub:
        fetch(hub, tmp_path / "m", "2:3/4")
    assert {p.name for p in (tmp_path / "m").glob("*.safetensors")} == {"b.safetensors"}


def test_the_gateway_gets_no_weights(tmp_path):
    with a_hub(FILES) as hub:
        assert fetch(hub, tmp_path / "m", "none").returncode == 0
        assert not hub.stored
    assert not list((tmp_path / "m").glob("*.safetensors"))


def test_a_model_in_one_file_needs_no_index(tmp_path):
    with a_hub({"config.json": b"{}", "model.safetensors": FIRST}) as hub:
        assert fetch(hub, tmp_path / "m", "1:2/4").returncode == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == FIRST


def test_what_is_there_is_not_fetched_again(tmp_path):
    with a_hub(FILES) as hub:
        fetch(hub, tmp_path / "m", "0:4/4")
        before = len(hub.stored)
        assert fetch(hub, tmp_path / "m", "0:4/4").returncode == 0
        assert len(hub.stored) == before


def test_a_download_that_breaks_is_continued(tmp_path):
    with a_hub(FILES) as hub:
        hub.breaks_after = 40
        assert fetch(hub, tmp_path / "m", "0:1/4").returncode == 0
        assert [request.headers.get("range") for request in hub.stored] == [None, "bytes=40-"]
    assert (tmp_path / "m" / "a.safetensors").read_bytes() == FIRST


def test_the_token_is_for_the_hub_alone(tmp_path):
    with a_hub(FILES, token="hf_secret") as hub:
        assert fetch(hub, tmp_path / "m", "0:1/4", token="hf_secret").returncode == 0
        assert all(request.headers.get("authorization") == "Bearer hf_secret" for request in hub.asked)
        assert hub.stored
        assert not any("authorization" in request.headers for request in hub.stored)


def test_a_refusal_is_said_at_once_and_without_the_token(tmp_path):
    with a_hub(FILES, token="hf_secret") as hub:
        done = fetch(hub, tmp_path / "m", "0:1/4", token="hf_wrong")
        assert len(hub.asked) == 1
    assert done.returncode == 1
    assert "401" in done.stderr
    assert "hf_wrong" not in done.stderr


def test_a_repository_cannot_name_files_elsewhere(tmp_path):
    with a_hub(
        {"config.json": b"{}", "..\\x.json": b"{}", "model.safetensors.index.json": b'{"weight_map": {"a": "../b.safetensors"}}'}
    ) as hub:
        done = fetch(hub, tmp_path / "m", "0:1/4")
    assert done.returncode == 1
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("tensor", "layers"),
    [
        ("model.layers.7.mlp.w", (8,)),
        ("transformer.h.0.ln_1.weight", (1,)),
        ("model.embed_tokens.weight", (0, 31)),
        ("lm_head.weight", (31,)),
        ("model.norm.weight", (31,)),
        ("bert.encoder.layer.7.attention.self.query.weight", (8,)),
        ("bert.embeddings.LayerNorm.weight", (0, 31)),
        ("bert.pooler.dense.bias", (31,)),
        ("7.weight", (7,)),
    ],
)
def test_tensors_belong_to_layers_as_the_profile_has_them(tensor, layers):
    assert layers_of(tensor, 32) == layers


def test_tied_heads_need_the_embeddings_file():
    assert wanted_weights(INDEX["weight_map"], 3, 4, 4) == {"a.safetensors", "b.safetensors"}
