"""Folders as people have them: what is beside the weights, what is damaged, what is quantized. Planner and segment give the same reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitinference.core.values.profile import Profile
from splitinference_segment.torch_models.accepted import accepted
from tests.modelfiles import tables
from tests.modelfiles.test_corpus import by_plan_command, loaded, planned

CONFIG: dict[str, Any] = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "sliding_window": None,
    "tie_word_embeddings": False,
}
SHAPES = tables.llama(CONFIG, head=True)
PUBLISHERS = {"tok_embeddings.weight": (100, 64), "layers.0.attention.wq.weight": (64, 64), "norm.weight": (64,)}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.0.mlp.up_proj"


def sharded(folder: Path) -> Path:
    return tables.model(folder, CONFIG, SHAPES, files=2)


def reindexed(folder: Path, change: Callable[[dict[str, str]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def test_the_index_decides_whatever_lies_beside_its_files(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    plain = by_plan_command(folder)
    assert isinstance(plain, Profile)
    tables.weights(folder / "consolidated.safetensors", PUBLISHERS)
    (folder / "old.safetensors").write_bytes(b"damaged")
    assert by_plan_command(folder) == plain
    assert planned(folder) == plain
    assert loaded(folder) == ""
    assert set(accepted(folder)[1].used) == set(SHAPES)


def test_a_single_file_decides_where_there_is_no_index(tmp_path: Path) -> None:
    folder = tables.model(tmp_path / "m", CONFIG, SHAPES)
    tables.weights(folder / "consolidated.safetensors", PUBLISHERS)
    assert isinstance(planned(folder), Profile)
    assert loaded(folder) == ""


def test_a_tensor_beside_those_that_the_index_names_is_not_the_models(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    tables.weights(folder / "extra.safetensors", {**PUBLISHERS, "model.norm.weight": (9,)})
    reindexed(folder, lambda found: None)
    assert isinstance(planned(folder), Profile)
    assert loaded(folder) == ""


def test_a_head_that_is_stored_counts_though_the_configuration_ties_it(tmp_path: Path) -> None:
    folder = tables.model(tmp_path / "m", {**CONFIG, "tie_word_embeddings": True}, SHAPES)
    profile = planned(folder)
    assert isinstance(profile, Profile)
    assert profile.layers[-1].tied_to is None
    assert not accepted(folder)[1].tied


def linked(name: str, target: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        outside = folder.parent / "elsewhere"
        outside.mkdir()
        (folder / name).rename(outside / name)
        (folder / name).symlink_to(target)

    return change


def rewritten(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def _header(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file that the index names is missing": (lambda f: (f / SECOND).unlink(), f"{INDEX} names {SECOND}, which the model does not have"),
    "a tensor that the index names is missing": (
        lambda f: reindexed(f, lambda m: m.update({"model.norm.weight": FIRST if m["model.norm.weight"] == SECOND else SECOND})),
        "which does not have it",
    ),
    "the index leaves a tensor out": (
        lambda f: reindexed(f, lambda m: m.pop("model.norm.weight") and None),
        "tensor model.norm.weight is missing",
    ),
    "the index leaves the folder": (
        lambda f: reindexed(f, lambda m: m.update({"model.norm.weight": "../x.safetensors"})),
        "expected a .safetensors file of the same folder",
    ),
    "the index names null": (lambda f: reindexed(f, lambda m: m.update({"model.norm.weight": None})), "model.norm.weight is in 'None'"),  # type: ignore[dict-item]
    "the index has no map": (lambda f: (f / INDEX).write_text('{"weight_map": null}'), f"{INDEX} has no weight_map"),
    "the index is a list": (lambda f: (f / INDEX).write_text("[]"), f"{INDEX} has no weight_map"),
    "the index is no JSON": (lambda f: (f / INDEX).write_text("{"), f"{INDEX} is not JSON"),
    "the index says a thing twice": (
        lambda f: (f / INDEX).write_text('{"weight_map": {"a": "b", "a": "c"}}'),
        f"{INDEX}: 'a' occurs twice",
    ),
    "a tensor twice without an index": (
        lambda f: (tables.weights(f / "model-00003.safetensors", {"model.norm.weight": (64,)}), (f / INDEX).unlink()),
        "model.norm.weight is stored twice, in model-0000",
    ),
    "a link to elsewhere": (
        linked(SECOND, f"../elsewhere/{SECOND}"),
        f"{SECOND} is a link to ../elsewhere/{SECOND}, which leaves the model's",
    ),
    "the configuration elsewhere": (linked("config.json", "../elsewhere/config.json"), "config.json is a link to ../elsewhere/config.json"),
    "the index elsewhere": (linked(INDEX, f"../elsewhere/{INDEX}"), f"{INDEX} is a link to"),
    "a link to nothing": (linked(SECOND, "nothing"), f"{SECOND} is a link to nothing, which is not there"),
    "cut short": (rewritten(SECOND, lambda data: data[:-1]), f"{SECOND} is cut short"),
    "cut in the header": (rewritten(SECOND, lambda data: data[:40]), f"{SECOND} is cut short: its header"),
    "cut before the header": (rewritten(SECOND, lambda data: data[:5]), f"{SECOND} is not a safetensors file"),
    "empty": (rewritten(SECOND, lambda data: b""), f"{SECOND} is not a safetensors file"),
    "too long": (rewritten(SECOND, lambda data: data + b"x"), "1 bytes belong to no tensor"),
    "a pointer of Git LFS": (
        rewritten(SECOND, lambda data: b"version https://git-lfs.github.com/spec/v1\n"),
        f"{SECOND} is not a safetensors",
    ),
    "a table that is a list": (rewritten(SECOND, lambda data: _header(b"[]")), f"{SECOND} has a damaged tensor table"),
    "a name twice": (rewritten(SECOND, lambda data: _header(b'{"a": {}, "a": {}}')), f"{SECOND}: 'a' occurs twice"),
    "a negative shape": (
        rewritten(SECOND, lambda data: _header(b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}')),
        f"{SECOND} has a damaged",
    ),
    "a gap": (
        rewritten(SECOND, lambda data: _header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}') + bytes(8)),
        "needs bytes 0 to 4, its table says 4 to 8",
    ),
    "a shape of other bytes": (
        rewritten(SECOND, lambda data: _header(b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}') + bytes(4)),
        "needs bytes 0 to 8",
    ),
    "a data type of nobody": (
        rewritten(SECOND, lambda data: _header(b'{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}') + bytes(4)),
        "data type 'Q9'",
    ),
    "a configuration that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "a configuration nested without end": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json"),
    "a configuration in Latin-1": (lambda f: (f / "config.json").write_bytes(b'{"a": "\xe9"}'), "config.json is not UTF-8"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_folder_is_refused_with_file_and_reason(what: str, tmp_path: Path) -> None:
    change, words = DAMAGED[what]
    folder = sharded(tmp_path / "m")
    change(folder)
    reason = planned(folder)
    assert isinstance(reason, str)
    assert words in reason
    assert str(tmp_path) not in reason
    assert by_plan_command(folder) == reason
    if "missing" not in what or "tensor" in what:  # a segment need not have the files of other segments
        assert loaded(folder) == reason


def quantized(folder: Path, config: dict[str, Any] | None = None, names: tuple[str, ...] = (), **of: str) -> Path:
    """A model in which `UP.<suffix>` of these data types stand for the weight."""
    shapes = {name: shape for name, shape in SHAPES.items() if not of or name != f"{UP}.weight"}
    shapes |= {f"{UP}.{suffix}": (64,) for suffix in of}
    dtypes = {f"{UP}.{suffix}": dtype for suffix, dtype in of.items()}
    return tables.model(folder, {**CONFIG, **(config or {})}, shapes, names=("tokenizer.json", *names), dtypes=dtypes)


QUANTIZED: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQ with a file of its own": (
        {"names": ("quantize_config.json",), "qweight": "I32", "qzeros": "I32", "g_idx": "I32"},
        "(GPTQ) are not served: quantize_config.json",
    ),
    "GPTQ without a word": ({"g_idx": "I32", "qweight": "I32"}, "(GPTQ) are not served: tensor"),
    "GPTQ": (
        {"config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "qweight": "I32", "g_idx": "I32"},
        f"tensor {UP}.qweight has shape [64], expected 2 dimensions",
    ),
    "AWQ": (
        {"config": {"quantization_config": {"quant_method": "awq", "bits": 4}}, "qweight": "I32", "scales": "F16"},
        f"tensor {UP}.qweight has shape [64], expected 2 dimensions",
    ),
    "a file with quantization's settings, inside the text's configuration": (
        {"config": {"text_config": {"quantization_config": {"quant_method": "gptq", "bits": 4}}}, "qweight": "I32"},
        "quantized weights are not served: text_config in config.json",
    ),
    "AWQ with a file of its own": ({"names": ("quant_config.json",), "qweight": "I32"}, "(AWQ) are not served: quant_config.json"),
    "bitsandbytes": ({"config": {"quantization_config": {"load_in_4bit": True}}, "weight": "U8"}, "for its GPU kernels. Save the model"),
    "bitsandbytes without a word": ({"weight": "U8", "weight.absmax": "F32"}, "(bitsandbytes)"),
    "bitsandbytes in 8 bits": ({"weight": "I8", "SCB": "F32"}, "(bitsandbytes)"),
    "FP8 of compressed-tensors": (
        {"config": {"compression_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}}, "weight": "F8_E4M3"},
        f"tensor {UP}.weight has shape [64], expected 2 dimensions",
    ),
    "FP8": (
        {"config": {"quantization_config": {"quant_method": "fp8"}}, "weight": "F8_E4M3", "weight_scale_inv": "F32"},
        f"tensor {UP}.weight has shape [64], expected 2 dimensions",
    ),
    "FP8 without a word": ({"weight": "F8_E4M3"}, "(FP8) are not served: tensor"),
    "FP8 with scales without a word": ({"weight": "F8_E4M3", "weight_scale": "F32"}, "are not served: tensor"),
    "INT8 without a word": ({"weight": "I8"}, "has shape [64], config.json says [96, 64]"),
    "MXFP4": ({"config": {"quantization_config": {"quant_method": "mxfp4"}}, "weight_blocks": "U8"}, "(MXFP4)"),
    "MXFP4 without a word": ({"weight_blocks": "U8", "weight_scales": "U8"}, "(MXFP4)"),
    "a method of nobody": ({"config": {"quantization_config": {"quant_method": "shiny"}}}, "(shiny)"),
    "a method that is a number": (
        {"config": {"quantization_config": 4}},
        "quantized weights are not served: quantization_config in config.json",
    ),
}


@pytest.mark.parametrize("what", QUANTIZED)
def test_quantized_weights_are_refused_with_the_method(what: str, tmp_path: Path) -> None:
    arguments, words = QUANTIZED[what]
    folder = quantized(tmp_path / "m", **arguments)
    reason = planned(folder)
    assert words in str(reason)
    assert by_plan_command(folder) == reason
    assert loaded(folder) == reason


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    folder = tables.model(tmp_path / "m", CONFIG, SHAPES, dtypes={f"{UP}.weight": "I8"})
    assert planned(folder) == loaded(folder) == f"tensor {UP}.weight is stored as I8; served are BF16, F16, F32, F64"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("tokenizer.model",), "there is no tokenizer.json, the model has only tokenizer.model"),
        (("vocab.json", "merges.txt"), "the model has only vocab.json"),
        ((), "the model has none"),
    ],
)
def test_a_tokenizer_that_the_gateway_cannot_read_is_reported_when_planned(names: tuple[str, ...], words: str, tmp_path: Path) -> None:
    folder = tables.model(tmp_path / "m", CONFIG, SHAPES, names=names)
    assert words in str(planned(folder))
    assert by_plan_command(folder) == planned(folder)
    assert loaded(folder) == "", "the tokenizer is the gateway's"


def test_a_chain_needs_no_tokenizer(tmp_path: Path) -> None:
    config = {"model_type": "sequential", "input": {"shape": [4]}, "layers": [{"type": "Linear", "in_features": 4, "out_features": 2}]}
    folder = tables.model(tmp_path / "m", config, {"0.weight": (2, 4), "0.bias": (2,)}, names=())
    assert isinstance(planned(folder), Profile)
    assert loaded(folder) == ""


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("adapter_model.safetensors", "is an adapter, not a model"),
        ("consolidated.safetensors", "has its publisher's own tensor names"),
        ("pytorch_model.bin", "there is no *.safetensors file; pytorch_model.bin is of a format that is not read"),
        ("README.md", "there is no *.safetensors file"),
    ],
)
def test_a_folder_without_weights_of_ours_is_said(file: str, words: str, tmp_path: Path) -> None:
    folder = tables.model(tmp_path / "m", CONFIG, SHAPES)
    (folder / "model.safetensors").rename(folder / file)
    assert words in str(planned(folder))
    assert by_plan_command(folder) == planned(folder)
