"""The reader of GGUF files: what it reads is what the `gguf` package wrote; what is damaged is refused with the reason."""

import struct

import pytest

from splitinference_modelfiles.gguf_files import gguf
from splitinference_modelfiles.gguf_files.gguf import GGUF_TYPES, GgufFile, choose_gguf, joined_gguf, parts_of, read_gguf
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo
from tests.modelfiles import gguf_files
from tests.modelfiles.gguf_files import Gguf, Typed, llama, reader, split


def read(data: bytes, size: int | None = -1) -> GgufFile:
    return read_gguf(reader(data), "m.gguf", len(data) if size == -1 else size)


def test_what_the_gguf_package_writes_is_read_back(tmp_path):
    np = pytest.importorskip("numpy")
    package = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = package.GGUFWriter(str(path), "llama")
    writer.add_block_count(2)
    writer.add_float32("a.float", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_int8("a.small", -3)
    writer.add_uint64("a.large", 2**40)
    writer.add_float64("a.double", 0.1)
    writer.add_token_list([b"a", b"\xf0\x9f", "\u00e9".encode()])
    writer.add_token_scores([0.0, -1.0, -2.5])
    half, whole = np.ones((3, 32), np.float16), np.ones((2, 4, 64), np.float32)
    writer.add_tensor("half", half)
    writer.add_tensor("whole", whole)
    eight = package.quants.quantize(np.ones((3, 64), np.float32), package.GGMLQuantizationType.Q8_0)
    writer.add_tensor("eight", eight, raw_dtype=package.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found, theirs = read(path.read_bytes()), package.GGUFReader(path)
    assert found.metadata | {"tokenizer.ggml.tokens": 0} == {
        "general.architecture": "llama", "llama.block_count": 2, "a.float": 0.5, "a.bool": True, "a.small": -3, "a.large": 2**40,
        "a.double": 0.1, "tokenizer.ggml.tokens": 0, "tokenizer.ggml.scores": [0.0, -1.0, -2.5],
    }  # fmt: skip
    tokens = [token.encode("utf-8", "surrogateescape") for token in found.metadata["tokenizer.ggml.tokens"]]
    assert tokens == [b"a", b"\xf0\x9f", "\u00e9".encode()]
    assert found.tensors == {
        "half": TensorInfo("F16", (3, 32), 192), "whole": TensorInfo("F32", (2, 4, 64), 2048), "eight": TensorInfo("Q8_0", (3, 64), 204)
    }  # fmt: skip
    assert {t.name: t.data_offset for t in theirs.tensors} == {name: place.offset for name, place in found.places.items()}


def test_the_sizes_of_all_types_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf").constants
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in constants.GGML_QUANT_SIZES.items()}
    assert {number: theirs[number] for number in GGUF_TYPES} == dict(GGUF_TYPES)


@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_are_read(version):
    whole = llama()
    whole.version = version
    assert read(whole.content()).version == version
    assert len(read(whole.content()).tensors) == len(whole.tensors)


def test_only_the_header_is_read_of_a_large_file():
    whole = Gguf({"k": "v" * 300_000}, {"w": ("F32", (1024, 1024))})
    asked: list[tuple[int, int]] = []
    read_gguf(reader(whole.content(), asked), "m.gguf", None)
    assert sum(count for _, count in asked) < 2**20 < 4 * 2**20
    assert [offset for offset, _ in asked] == [0, 2**18]


def hostile() -> list[tuple[bytes, str]]:
    good = llama().content()
    head = b"GGUF" + struct.pack("<I", 3)
    long_key = gguf_files.text("k")
    return [
        (b"", "cut short"),
        (b"PK\x03\x04" + bytes(100), "not a GGUF file: it begins with"),
        (Gguf(version=1).content(), "version 1 of GGUF; served are 2 and 3"),
        (Gguf(version=4).content(), "version 4 of GGUF"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(32), "big-endian"),
        (Gguf(counts=(2**63, 0)).content(), "tensors, more than"),
        (Gguf(counts=(0, 2**40)).content(), "metadata keys, more than"),
        (Gguf({"a": 1}, counts=(0, 2)).content(), "a metadata key has 0 characters"),
        (head + struct.pack("<QQQ", 0, 1, 2**62), "longer than"),
        (head + struct.pack("<QQ", 0, 1) + long_key + struct.pack("<IIQ", 9, 4, 2**60), "lists of more than"),
        (head + struct.pack("<QQ", 0, 1) + long_key + struct.pack("<IIQ", 9, 9, 1) + bytes(40), "list of the unknown type 9"),
        (head + struct.pack("<QQ", 0, 1) + long_key + struct.pack("<I", 77), "unknown type 77"),
        (Gguf({"a": 1}, again=["a"]).content(), "'a' occurs twice"),
        (Gguf({"general.alignment": Typed(4, "I", 24)}).content(), "general.alignment is 24"),
        (Gguf({"general.alignment": Typed(4, "I", 0)}).content(), "general.alignment is 0"),
        (Gguf({"general.alignment": "32"}).content(), "general.alignment is 32"),
        (Gguf({}, {"w": ("F32", (4,))}, twice=["w"], offsets={}).content(), "w is there twice"),
        (Gguf({}, {"w": ("F32", (4,)), "v": ("F32", (4,))}, offsets={"v": 0}).content(), "begins at byte 0 of the data, expected 32"),
        (Gguf({}, {"w": ("F32", (4,))}, offsets={"w": 2**40}).content(), "expected 0"),
        (Gguf({}, {"w": ("Q8_0", (2, 33))}).content(), "expected a multiple of 32"),
        (Gguf({}, {"w": ("F32", (0, 4))}).content(), "impossible shape [0, 4]"),
        (Gguf({}, {"w": ("F32", ())}).header(), "0 dimensions"),
        (Gguf({}, {"w" * 64: ("F32", (4,))}).content(), "expected 1 to 63"),
        (Gguf({}, {"a\nb": ("F32", (4,))}).content(), "printable"),
        (good[: len(good) // 2], "cut short"),
        (good[: len(llama().header()) + 40], "cut short"),
        (good[:100], "cut short"),
    ]


@pytest.mark.parametrize(("data", "reason"), hostile(), ids=[str(number) for number in range(len(hostile()))])
def test_a_damaged_file_is_refused_with_the_reason(data, reason):
    with pytest.raises(ModelRefusedError) as refused:
        read(data)
    assert reason in str(refused.value)
    assert "m.gguf" in str(refused.value)


def test_a_file_that_is_cut_anywhere_is_refused():
    data = llama().content()
    last = next(iter(reversed(llama().tensors.values())))[1]
    for end in [*range(0, len(data) - 4 * last[0], 97)]:
        with pytest.raises(ModelRefusedError):
            read(data[:end])


def test_a_shape_that_overflows_is_refused():
    data = bytearray(Gguf({}, {"w": ("F32", (4, 4))}).header())
    at = data.index(b"w") + 1 + 4
    data[at : at + 16] = struct.pack("<QQ", 2**33, 2**33)
    with pytest.raises(ModelRefusedError, match="impossible shape"):
        read(bytes(data))


def test_an_unknown_type_of_ggml_is_refused():
    data = Gguf({}, {"w": ("F32", (4,))}).content()
    at = data.index(b"w") + 1 + 4 + 8
    with pytest.raises(ModelRefusedError, match="ggml's type 99"):
        read(data[:at] + struct.pack("<I", 99) + data[at + 4 :])


# --- parts -----------------------------------------------------------------------------------------------------------------------------

NAMES = parts_of("m-00001-of-00003.gguf")


def joined(parts: list[Gguf], names: tuple[str, ...] = NAMES) -> gguf.GgufModel:
    return joined_gguf([(name, read_gguf(reader(part.content()), name, None)) for name, part in zip(names, parts, strict=True)])


def test_a_split_model_is_the_whole_one():
    found = joined(split(llama(), 3))
    assert list(found.tensors) == list(llama().tensors)
    assert found.places["token_embd.weight"].file == NAMES[0]
    assert found.places["output_norm.weight"].file == NAMES[2]
    assert found.metadata["llama.block_count"] == 2


def test_parts_in_the_wrong_order_are_refused():
    one, two, three = split(llama(), 3)
    with pytest.raises(ModelRefusedError, match=r"m-00002-of-00003\.gguf says that it is part 3, its name says 2"):
        joined([one, three, two])


def test_parts_of_another_split_are_refused():
    with pytest.raises(ModelRefusedError, match="says that the model has 2 parts, its name says 3"):
        joined([*split(llama(), 2), split(llama(), 3)[2]])


def test_a_tensor_in_two_parts_is_refused():
    parts = split(llama(), 3)
    parts[1] = Gguf(parts[1].metadata, {**parts[1].tensors, "token_embd.weight": ("F32", (4,))})
    with pytest.raises(ModelRefusedError, match=r"token_embd\.weight is there twice, in m-00001-of-00003\.gguf and in m-00002"):
        joined(parts)


def test_a_part_with_fewer_tensors_is_refused():
    parts = split(llama(), 3)
    parts[2] = Gguf(parts[2].metadata, {})
    with pytest.raises(ModelRefusedError, match=r"says that the model has \d+ tensors, its parts have"):
        joined(parts)


def test_a_part_under_a_name_without_numbers_is_refused():
    part = split(llama(), 3)[0]
    with pytest.raises(ModelRefusedError, match="has 3 parts, its name says 1"):
        joined([part], ("m.gguf",))


def test_a_vocabulary_alone_is_refused():
    with pytest.raises(ModelRefusedError, match="holds no tensor"):
        joined([Gguf({"general.architecture": "llama"})], ("m.gguf",))


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["m.gguf", "config.json"], None, ("m.gguf",)),
        (["mmproj-m.gguf", "m.gguf"], None, ("m.gguf",)),
        ([*NAMES, "README.md"], None, NAMES),
        (["a.gguf", "b.gguf"], "b.gguf", ("b.gguf",)),
        ([*NAMES, "a.gguf"], NAMES[0], NAMES),
        ([*NAMES, "a.gguf"], NAMES[2], NAMES),
        (["q4/m.gguf", "q8/m.gguf"], "q8/m.gguf", ("q8/m.gguf",)),
    ],
)
def test_the_one_model_is_chosen(names, wanted, expected):
    assert choose_gguf(names, wanted) == expected


@pytest.mark.parametrize(
    ("names", "wanted", "reason"),
    [
        (["config.json"], None, "there is no *.gguf file"),
        (["m-Q4_0.gguf", "m-Q8_0.gguf"], None, "there are 2 GGUF models: m-Q4_0.gguf, m-Q8_0.gguf; name one in spec.model.file"),
        (["a.gguf"], "b.gguf", "there is no file b.gguf; there is one GGUF model: a.gguf"),
        ([NAMES[0], NAMES[2]], None, f"part {NAMES[1]} is missing: the model has 3 parts"),
        ([NAMES[1]], None, f"part {NAMES[0]} and 1 more is missing"),
        (["m-00004-of-00003.gguf"], None, "would be part 4 of 3"),
        (["m-00001-of-99999.gguf"], None, "at most 1000 parts"),
        (["m-00000-of-00003.gguf"], None, "would be part 0 of 3"),
    ],
)
def test_no_choice_is_made_where_it_is_not_clear(names, wanted, reason):
    with pytest.raises(ModelRefusedError) as refused:
        choose_gguf(names, wanted)
    assert reason in str(refused.value)
