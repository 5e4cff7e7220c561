"""Segments check what they load by the model's digests: each its own tensors, as they are copied."""

import base64
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_models import CONFIGS, write_model

from splitinference_modelfiles.stored import digests as rules
from splitinference_modelfiles.stored.digests import Digests, folder_digests
from splitinference_modelfiles.stored.folder import tensor_tables
from splitinference_modelfiles.stored.headers import header_length, parse_header
from splitinference_segment.torch_models import content
from splitinference_segment.torch_models.content import MismatchError, read_digests
from splitinference_segment.torch_models.loading import load_layers
from splitinference_segment.torch_models.weights import Weights

BY = ["tensor", "block"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(CONFIGS["llama"], tmp_path_factory.mktemp("model"))


def digests_of(folder: Path, by: str = "tensor") -> Digests:
    most, rules.MOST_LISTED = rules.MOST_LISTED, rules.MOST_LISTED if by == "tensor" else 1
    try:
        found = folder_digests(str(folder), *tensor_tables(str(folder)), None)
    finally:
        rules.MOST_LISTED = most
    assert found is not None
    return found


def a_copy(folder: Path, target: Path) -> Path:
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def flip(folder: Path, tensor: str) -> None:
    """Change one bit of a tensor; nothing else of the file, not even its time."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = header_length(bytes(data[:8]), path.name)
    header = json.loads(data[8 : 8 + length])
    assert tensor in parse_header(bytes(data[8 : 8 + length]), path.name, len(data))
    data[8 + length + header[tensor]["data_offsets"][1] - 1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_segment_of_the_model_loads_the_same_with_and_without(folder: Path, by: str, dtype: torch.dtype):
    with_, without = (load_layers(folder, 0, 7, dtype, digests=each) for each in (digests_of(folder, by), None))
    assert with_.weight_bytes() == without.weight_bytes() > 0
    names = sorted(Weights(folder)._table)
    read = [Weights(folder, each).read(names, dtype, torch.device("cpu")) for each in (digests_of(folder, by), None)]
    assert all(torch.equal(read[0][name], read[1][name]) for name in names)


@pytest.mark.parametrize("by", BY)
def test_one_bit_is_noticed_by_the_segment_that_loads_it_and_by_no_other(folder: Path, tmp_path: Path, by: str):
    listed, other = digests_of(folder, by), a_copy(folder, tmp_path / "m")
    flip(other, "model.layers.2.mlp.up_proj.weight")
    load_layers(other, 0, 3, torch.float32, digests=listed)
    load_layers(other, 4, 7, torch.float32, digests=listed)
    with pytest.raises(MismatchError, match=r"^ModelDigestMismatch: ") as error:
        load_layers(other, 3, 4, torch.float32, digests=listed)
    assert ("model.layers.2.mlp.up_proj.weight" if by == "tensor" else "block:2") in str(error.value)
    assert len(str(error.value)) < 300, "it has to fit into the condition"


def test_another_configuration_is_noticed(folder: Path, tmp_path: Path):
    other = a_copy(folder, tmp_path / "m")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert config.read_text() != (folder / "config.json").read_text()
    with pytest.raises(MismatchError, match=r"config\.json"):
        load_layers(other, 1, 2, torch.float32, digests=digests_of(folder))


def test_pieces_cover_a_tensor_of_any_size(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "_PIECE", 12)
    load_layers(folder, 0, 7, torch.bfloat16, digests=digests_of(folder))


@pytest.mark.parametrize("kind", ["bert", "sequential"])
def test_all_kinds_of_models_are_checked(tmp_path: Path, kind: str):
    if kind == "bert":
        from transformers import BertConfig, BertForMaskedLM

        small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 50}
        BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path)
        tensor = "bert.encoder.layer.0.output.dense.weight"
    else:
        from safetensors.torch import save_file

        layers = [{"type": "Linear", "in_features": 4, "out_features": 4}] * 2
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "sequential", "input": {"shape": [4]}, "layers": layers}))
        save_file({f"{i}.{what}": torch.ones(*shape) for i in range(2) for what, shape in (("weight", (4, 4)), ("bias", (4,)))},
                  tmp_path / "model.safetensors")  # fmt: skip
        tensor = "1.weight"
    listed = digests_of(tmp_path)
    load_layers(tmp_path, 0, 2, torch.float32, digests=listed)
    flip(tmp_path, tensor)
    with pytest.raises(MismatchError, match=tensor):
        load_layers(tmp_path, 0, 2, torch.float32, digests=listed)


# --- the list, as it comes in a ConfigMap ---------------------------------------------------------------------------------------------


def a_list(target: Path, found: Digests, change: Callable[[dict[str, object]], None] = lambda _: None) -> Path:
    whole = {"config": {}, "tensors": {}, "content": found.as_json()}
    change(whole)
    target.write_bytes(base64.b64encode(gzip.compress(json.dumps(whole).encode())))
    return target


@pytest.mark.parametrize("by", BY)
def test_the_list_is_read_back(folder: Path, tmp_path: Path, by: str):
    found = digests_of(folder, by)
    assert read_digests(a_list(tmp_path / "l", found), found.root) == found


def test_a_list_of_another_model_is_refused(folder: Path, tmp_path: Path):
    found = digests_of(folder)
    other = Digests({**found.tensors, "lm_head.weight": "0" * 64}, {})
    with pytest.raises(MismatchError, match="has the root sha256:"):
        read_digests(a_list(tmp_path / "l", other), found.root)


@pytest.mark.parametrize("bad", [b"", b"!", base64.b64encode(b"no gzip"), base64.b64encode(gzip.compress(b"[]", mtime=0))])
def test_what_is_no_list_is_refused(tmp_path: Path, bad: bytes):
    (tmp_path / "l").write_bytes(bad)
    with pytest.raises(MismatchError, match="the list of digests cannot be used"):
        read_digests(tmp_path / "l", "sha256:" + "0" * 64)
    with pytest.raises(MismatchError, match="the list of digests cannot be used"):
        read_digests(tmp_path / "not there", "sha256:" + "0" * 64)


def test_a_list_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(content, "_LARGEST", 1000)
    (tmp_path / "l").write_bytes(base64.b64encode(gzip.compress(b"[" + b" " * 100_000 + b"]")))
    with pytest.raises(MismatchError, match="too large"):
        read_digests(tmp_path / "l", "sha256:" + "0" * 64)


def test_weight_files_in_use_are_locked(folder: Path):
    """So whoever makes room in the node's cache leaves them there."""
    import fcntl

    load_layers(folder, 1, 2, torch.float32)
    with (folder / "model.safetensors").open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_reason_is_left_for_the_kubelet_by_a_process_without_a_locale(tmp_path: Path):
    """Triton's stub has none, and a tensor may be called anything."""
    code = (
        "import pathlib, sys; from splitinference_segment.torch_models import content; "
        "content.TERMINATION_LOG = pathlib.Path(sys.argv[1]); content.tell(content.MismatchError('layers.0.\\u00e9'))"
    )
    without = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], env={**os.environ, **without}, check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "ModelDigestMismatch: layers.0.\u00e9\n"
