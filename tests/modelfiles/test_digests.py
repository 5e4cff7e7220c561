"""The digest of a model's content: what changes it, what does not, and that a part can be checked by the list."""

import hashlib
import json
from pathlib import Path

import pytest

from splitinference_modelfiles.stored import digests
from splitinference_modelfiles.stored.digests import CONFIG_MEMBER, Digests, folder_digests, group_of, listed, read_list
from splitinference_modelfiles.stored.folder import tensor_tables

Stored = dict[str, tuple[str, list[int], bytes]]
TENSORS: Stored = {
    "model.embed_tokens.weight": ("BF16", [4, 2], bytes(range(16))),
    "model.layers.0.a": ("F32", [2], b"abcdefgh"),
    "model.layers.0.b": ("F32", [2], b"ABCDEFGH"),
    "model.layers.11.a": ("F32", [0], b""),
    "model.norm.weight": ("BF16", [2], b"norm"),
}


def stored(tensors: Stored, order: list[str] | None = None) -> bytes:
    """A safetensors file whose tensors lie in this order."""
    table, data = {}, b""
    for name in order or tensors:
        dtype, shape, content = tensors[name]
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    header = json.dumps({name: table[name] for name in sorted(table)}).encode()
    return len(header).to_bytes(8, "little") + header + data


def a_folder(folder: Path, *files: bytes, config: bytes = b"{}") -> Path:
    folder.mkdir()
    (folder / "config.json").write_bytes(config)
    for number, content in enumerate(files):
        (folder / f"part-{number}.safetensors").write_bytes(content)
    return folder


def of(folder: Path, seconds: float | None = None) -> Digests:
    found = folder_digests(str(folder), *tensor_tables(str(folder)), seconds)
    assert found is not None
    return found


def test_the_digests_are_these_for_ever(tmp_path: Path):
    """Users write them into their resources: another release must not compute others."""
    found = of(a_folder(tmp_path / "m", stored(TENSORS)))
    assert found.root == "sha256:fd3ad621b0cc63d9e1bced51dc6c2b93287560b15ce27910b8f7614cbae48993"
    by_hand = hashlib.sha256()
    for text in ("tensor", "model.norm.weight", "BF16", "[2]"):
        by_hand.update(len(text).to_bytes(8, "little") + text.encode())
    by_hand.update(b"norm")
    assert found.tensors["model.norm.weight"] == by_hand.hexdigest()


def test_files_and_their_order_do_not_matter(tmp_path: Path):
    one = of(a_folder(tmp_path / "one", stored(TENSORS)))
    names = sorted(TENSORS)
    parts = [stored({name: TENSORS[name] for name in names[:2]}), stored({name: TENSORS[name] for name in names[2:]}, names[:1:-1])]
    assert of(a_folder(tmp_path / "two", *parts)) == one


def changed(name: str, *, dtype: str = "", shape: list[int] | None = None, content: bytes | None = None) -> Stored:
    old = TENSORS[name]
    return TENSORS | {name: (dtype or old[0], shape or old[1], old[2] if content is None else content)}


@pytest.mark.parametrize(
    "other",
    [
        changed("model.layers.0.a", content=b"abcdefgi"),
        changed("model.layers.0.a", dtype="I32"),
        changed("model.embed_tokens.weight", shape=[2, 4]),
        TENSORS | {"model.layers.0.a": TENSORS["model.layers.0.b"], "model.layers.0.b": TENSORS["model.layers.0.a"]},
        {name: one for name, one in TENSORS.items() if name != "model.layers.11.a"},
        TENSORS | {"more": ("F32", [0], b"")},
    ],
    ids=["one bit", "dtype", "shape", "swapped", "missing", "more"],
)
def test_everything_that_makes_the_model_changes_it(tmp_path: Path, other: Stored):
    assert of(a_folder(tmp_path / "a", stored(TENSORS))).root != of(a_folder(tmp_path / "b", stored(other))).root


def test_the_configuration_is_part_of_it(tmp_path: Path):
    one, other = (a_folder(tmp_path / name, stored(TENSORS), config=text) for name, text in (("a", b"{}"), ("b", b"{} ")))
    assert of(one).root != of(other).root
    assert of(one).tensors[CONFIG_MEMBER] != of(other).tensors[CONFIG_MEMBER]


def test_many_tensors_are_listed_by_block_with_the_same_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = a_folder(tmp_path / "m", stored(TENSORS))
    each = of(folder)
    monkeypatch.setattr(digests, "MOST_LISTED", 3)
    by_block = of(folder)
    assert not by_block.tensors
    assert set(by_block.groups) == {"block:0", "block:11", "model.embed_tokens.weight", "model.norm.weight", CONFIG_MEMBER}
    assert by_block.root == each.root


def test_a_list_of_the_largest_known_models_stays_small():
    names = {f"model.layers.{i}.mlp.experts.{j}.w": "0" * 64 for i in range(60) for j in range(1500)}
    assert len(json.dumps(listed(names).as_json())) < 10_000


def test_a_reading_that_takes_too_long_is_given_up(tmp_path: Path):
    folder = a_folder(tmp_path / "m", stored(TENSORS))
    assert folder_digests(str(folder), *tensor_tables(str(folder)), -1.0) is None


@pytest.mark.parametrize(
    ("member", "group"),
    [
        ("model.layers.7.mlp.w", "block:7"),
        ("transformer.h.0.ln.weight", "block:0"),
        ("bert.encoder.layer.3.w", "block:3"),
        ("5.weight", "block:5"),
        ("lm_head.weight", "lm_head.weight"),
        (CONFIG_MEMBER, CONFIG_MEMBER),
    ],
)
def test_groups_are_blocks(member: str, group: str):
    assert group_of(member) == group


LIST = listed({"a": "0" * 64, "model.layers.1.b": "1" * 64}).as_json()


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        [],
        {},
        {**LIST, "root": "sha256:" + "0" * 64},
        {**LIST, "tensors": {**LIST["tensors"], "a": "2" * 64}},
        {**LIST, "tensors": {"a": "0" * 64}},
        {**LIST, "tensors": {"a": "x" * 64}},
        {**LIST, "tensors": {"a": 7}},
        {**LIST, "tensors": ["a"]},
        {**LIST, "groups": {"a": "0" * 64}},
        {"root": LIST["root"]},
    ],
)
def test_a_list_that_is_not_of_its_root_is_refused(damaged: object):
    assert read_list(LIST).as_json() == LIST
    with pytest.raises(ValueError, match="digests"):
        read_list(damaged)
