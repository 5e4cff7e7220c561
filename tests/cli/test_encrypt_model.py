"""`splitinference encrypt-model`: the planner reads what it made without a key; nothing readable is left behind."""

import json
import stat
from pathlib import Path

import pytest

from splitinference.cli.main import main
from splitinference_modelfiles.sealed import TamperedError, WrongKeyError, bounds, opened, seal_of
from splitinference_modelfiles.stored.folder import tensor_tables
from splitinference_modelfiles.stored.headers import header_length, parse_header

DATA = bytes(range(256)) * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    table = {
        "w": {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]},
        "b": {"dtype": "BF16", "shape": [2, 128], "data_offsets": [256, 768]},
        "__metadata__": {"format": "pt"},
    }
    header = json.dumps(table).encode()
    (made / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + DATA)
    (made / "config.json").write_text("{}")
    (made / "tokenizer.json").write_text('{"a": 1}')
    return made


def read(path: Path, key: bytes) -> dict[str, bytes]:
    content = path.read_bytes()
    size = header_length(content[:8], path.name)
    header, data = content[8 : 8 + size], content[8 + size :]
    table, seal, begins = parse_header(header, path.name, len(content)), seal_of(header, path.name), json.loads(header)
    assert seal is not None
    made = opened(key, seal, path.name, table)
    plain = {}
    for name, info in table.items():
        at = begins[name]["data_offsets"][0]
        parts = (made.decrypted(name, info, n, data[at + a : at + b], seal.tags[name][16 * n : 16 * n + 16]) for n, a, b in bounds(info))
        plain[name] = b"".join(parts)
    return plain


def test_the_copy_is_read_by_the_planner_and_its_weights_with_the_key_alone(folder, tmp_path, capsys):
    key, target = tmp_path / "key", tmp_path / "locked"
    assert main(["encrypt-model", str(folder), str(target), "--key-file", str(key)]) == 0
    assert "Store " in capsys.readouterr().out
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert tensor_tables(str(target)) == tensor_tables(str(folder))
    assert (target / "tokenizer.json").read_text() == '{"a": 1}'
    assert read(target / "model.safetensors", key.read_bytes()) == {"w": DATA[:256], "b": DATA[256:]}
    with pytest.raises(WrongKeyError):
        read(target / "model.safetensors", bytes(32))
    content = bytearray((target / "model.safetensors").read_bytes())
    content[-5] ^= 4
    (target / "model.safetensors").write_bytes(content)
    with pytest.raises(TamperedError, match="tensor b is not what was encrypted"):
        read(target / "model.safetensors", key.read_bytes())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("key", "has 5 bytes, a key has 32: openssl rand"),
        ("target", "exists"),
        ("weights", "pytorch_model.bin may hold weights and would stay readable"),
        ("twice", "model.safetensors is encrypted already"),
        ("nothing", "there is no *.safetensors file"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_left_behind(folder, tmp_path, capsys, wrong, message):
    key, target = tmp_path / "key", tmp_path / "locked"
    if wrong == "key":
        key.write_bytes(b"short")
    elif wrong == "target":
        target.mkdir()
    elif wrong == "weights":
        (folder / "pytorch_model.bin").write_bytes(b"x")
    elif wrong == "twice":
        assert main(["encrypt-model", str(folder), str(tmp_path / "once"), "--key-file", str(key)]) == 0
        folder = tmp_path / "once"
    else:
        (folder / "model.safetensors").unlink()
    assert main(["encrypt-model", str(folder), str(target), "--key-file", str(key)]) == 2
    assert message in capsys.readouterr().err
    assert not target.exists() or not any(target.iterdir())
