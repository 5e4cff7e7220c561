"""The script that fetches a model, run as an init container runs it, against a hub that behaves as the real one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.inpod import script
from splitinference.inpod.fetch_model import layers_of, wanted_weights
from tests.inpod.hub import FakeHub, a_hub, endless
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
    text = script("fetch_model").replace("time.sleep(min(2**attempt, 20))", "time.sleep(0)")  # a test need not wait
    command = [sys.executable, "-c", text, hub.url, "owner/model", "main", str(folder), layers]
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


def test_the_pooling_of_an_embedding_model_comes_along_and_other_folders_do_not(tmp_path):
    more = {"1_Pooling/config.json": b'{"p": 1}', "2_Normalize/other.json": b"{}", "x/1_Pooling/config.json": b"{}", "modules.json": b"[]"}
    with a_hub({**FILES, **more}) as hub:
        done = fetch(hub, tmp_path / "m", "none")
    assert done.returncode == 0, done.stderr
    there = {str(path.relative_to(tmp_path / "m")) for path in (tmp_path / "m").rglob("*") if path.is_file()}
    assert there == {"config.json", "tokenizer.json", "modules.json", "model.safetensors.index.json", "1_Pooling/config.json"}


def test_what_the_index_does_not_name_is_not_fetched(tmp_path):
    with a_hub({**FILES, "consolidated.safetensors": FIRST}) as hub:
        assert fetch(hub, tmp_path / "m", "0:4/4").returncode == 0
    assert {p.name for p in (tmp_path / "m").glob("*.safetensors")} == {"a.safetensors", "b.safetensors"}


def test_of_files_without_an_index_the_single_one_is_fetched(tmp_path):
    with a_hub({"config.json": b"{}", "model.safetensors": FIRST, "consolidated.safetensors": SECOND}) as hub:
        assert fetch(hub, tmp_path / "m", "0:4/4").returncode == 0
    assert {p.name for p in (tmp_path / "m").glob("*.safetensors")} == {"model.safetensors"}


def test_a_model_in_one_file_needs_no_index(tmp_path):
    with a_hub({"config.json": b"{}", "model.safetensors": FIRST}) as hub:
        assert fetch(hub, tmp_path / "m", "1:2/4").returncode == 0
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == FIRST


def test_what_is_there_is_not_fetched_again(tmp_path):
    with a_hub(FILES) as hub:
        fetch(hub, tmp_path / "m", "0:4/4")
        before = len(hub.stored)
        assert fetch(hub, tmp_path / "m", "0:4/4").returncode == 0
        assert [request.headers["range"] for request in hub.stored[before:]] == ["bytes=0-0"], "one byte, to see that it may be had"


@pytest.mark.parametrize("name", ["a.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_file_that_was_changed_and_kept_its_size_is_fetched_anew(tmp_path, name):
    with a_hub(FILES) as hub:
        fetch(hub, tmp_path / "m", "0:4/4")
        there = tmp_path / "m" / name
        there.write_bytes(bytes(len(FILES[name])))
        done = fetch(hub, tmp_path / "m", "0:4/4")
    assert done.returncode == 0, done.stderr
    assert there.read_bytes() == FILES[name]


def test_a_link_to_elsewhere_is_replaced_by_the_file(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(FIRST)
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.safetensors").symlink_to(elsewhere)
    with a_hub(FILES) as hub:
        assert fetch(hub, tmp_path / "m", "0:1/4").returncode == 0
    assert not (tmp_path / "m" / "a.safetensors").is_symlink()


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_weights_that_are_on_the_node_are_not_for_those_who_may_not_have_them(tmp_path, token):
    with a_hub(FILES, token="hf_secret", gated=True) as hub:
        assert fetch(hub, tmp_path / "m", "0:4/4", token="hf_secret").returncode == 0
        done = fetch(hub, tmp_path / "m", "0:4/4", token=token)
    assert done.returncode == 1
    assert "the hub says 401" in done.stderr
    assert "is the token right" in done.stderr


@pytest.mark.parametrize("around", ["{}\n", " {} ", "\t{}\r\n\n"])
def test_space_around_a_token_is_not_part_of_it(tmp_path, around):
    with a_hub(FILES, token="hf_secret") as hub:
        assert fetch(hub, tmp_path / "m", "none", token=around.format("hf_secret")).returncode == 0


@pytest.mark.parametrize("token", ["hf_zq\nzqzq", "hf_zq\r\nX-Other: zqzq", "hf_zq zqzq", "hf_zqzqé", "hf_" + "x" * 2000])
def test_what_cannot_be_a_token_is_said_without_it(tmp_path, token):
    with a_hub(FILES, token="hf_secret") as hub:
        done = fetch(hub, tmp_path / "m", "none", token=token)
        assert not hub.asked
    assert done.returncode == 1
    assert "zq" not in done.stdout + done.stderr
    assert "xxx" not in done.stdout + done.stderr
    assert "one line of printable ASCII" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_no_password_and_no_signature_of_an_address_is_printed(tmp_path):
    with a_hub(FILES) as hub:
        hub.store_path = "/gone?X-Amz-Signature=s3cret"
        done = fetch(hub, tmp_path / "m", "0:1/4")
    assert done.returncode == 1
    assert "/gone: the hub says 404" in done.stderr
    assert "s3cret" not in done.stderr


def test_more_bytes_than_stated_are_not_written(tmp_path):
    with a_hub(FILES) as hub:
        hub.longer_by = 50_000_000
        done = fetch(hub, tmp_path / "m", "0:1/4")
        assert not [path for path in (tmp_path / "m").iterdir() if path.stat().st_size > 1_000_000]
    assert done.returncode == 1
    assert "too many" in done.stderr


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.mark.parametrize(
    "answer", [HEAD, HEAD + b'{"sha": "', HEAD + b"[" * 100_000, b"HTTP/1.1 200 OK\r\nX: "], ids=["body", "string", "nested", "header"]
)
@pytest.mark.parametrize("name", ["fetch_model", "read_hub"])
def test_an_endless_answer_is_given_up_in_little_memory(tmp_path, monkeypatch, answer, name):
    """As in its pod: with so much memory that an answer which is kept would not fit."""
    text = script(name).replace("TRIES = 5", "TRIES = 1")
    limited = f"import resource\nresource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))\n{text}"
    with endless(answer) as url:
        arguments = [url, "owner/model", "main", *([str(tmp_path / "m"), "none"] if name == "fetch_model" else [])]
        command = [sys.executable, "-c", limited, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert "MemoryError" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr) < 600


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


def test_an_adapter_is_two_files_and_nothing_else(tmp_path):
    files = {"adapter_config.json": b"{}", "adapter_model.safetensors": FIRST, "tokenizer.json": b"{}", "optimizer.safetensors": SECOND}
    with a_hub(files) as hub:
        done = fetch(hub, tmp_path / "a", "adapter")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_repository_without_an_adapter_says_what_one_is(tmp_path):
    with a_hub(FILES) as hub:
        done = fetch(hub, tmp_path / "a", "adapter")
    assert done.returncode == 1
    assert "it has no adapter_config.json: an adapter in PEFT's format has" in done.stderr
