"""Pre-quantized checkpoints and quantized weights: what is served, in which bytes, and why the rest is not. Planner and segment agree."""
# ruff: noqa: E501

from pathlib import Path
from typing import Any

import pytest

from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import Profile
from splitinference_modelfiles.stored.folder import CONFIG as CONFIG_FILE
from splitinference_modelfiles.stored.folder import file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError
from tests.modelfiles import tables
from tests.modelfiles.case import Case
from tests.modelfiles.corpus import CORPUS, SERVED
from tests.modelfiles.test_corpus import by_plan_command, loaded, planned, written

CONFIG: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES = tables.llama(CONFIG, head=True)
LINEAR = tuple(name for name in SHAPES if name.endswith("_proj.weight"))
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def compressed(kind: str, bits: int, what: str = "int", **more: Any) -> dict[str, Any]:
    weights = {"num_bits": bits, "type": what, "strategy": "group", "group_size": 128, "symmetric": True}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": {"weights": weights, **more}}}


def gptq(rows: int, columns: int, bits: int = 4) -> dict[str, tuple[str, tuple[int, ...]]]:
    groups, each = columns // 128, 32 // bits
    return {
        "qweight": ("I32", (columns // each, rows)), "qzeros": ("I32", (groups, rows // each)), "scales": ("F16", (groups, rows)),
        "g_idx": ("I32", (columns,)),
    }  # fmt: skip


def awq(rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    groups = columns // 128
    return {"qweight": ("I32", (columns, rows // 8)), "qzeros": ("I32", (groups, rows // 8)), "scales": ("F16", (groups, rows))}


def packed(rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"weight_packed": ("I32", (rows, columns // 8)), "weight_scale": ("BF16", (rows, columns // 128)), "weight_shape": ("I64", (2,))}


def int8(rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {"weight": ("I8", (rows, columns)), "weight_scale": ("BF16", (rows, 1))}


def fp8(rows: int, columns: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    scale = (-(-rows // 128), -(-columns // 128))
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": ("F32", scale), "input_scale": ("F32", (1,))}


def model(folder: Path, settings: Any, layer: Any, change: dict[str, Any] | None = None, **more: Any) -> Path:
    """The model with its linear layers stored as `layer` says. `change`: tensors that are other, or None: left out."""
    shapes, dtypes = dict(SHAPES), {}
    for name in LINEAR if layer else ():
        rows, columns = shapes.pop(name)
        for suffix, (dtype, shape) in layer(rows, columns).items():
            shapes[name.removesuffix("weight") + suffix], dtypes[name.removesuffix("weight") + suffix] = shape, dtype
    for name, shape in (change or {}).items():
        shapes.pop(name, None)
        if shape is not None:
            shapes[name] = shape
    config = {**CONFIG, **({} if settings is None else {"quantization_config": settings}), **more}
    return tables.model(folder, config, shapes, dtypes=dtypes)


def linear_bytes(bits: int, group: int) -> int:
    """Of all linear layers in codes: bits, and two bfloat16 for each group and plane."""
    planes = bits // 4
    return sum(rows * columns * bits // 8 + rows * (columns * planes // group) * 4 for rows, columns in (SHAPES[name] for name in LINEAR))


REST = 2 * sum(rows if not more else rows * more[0] for rows, *more in (SHAPES[name] for name in SHAPES if name not in LINEAR))
SERVED_CHECKPOINTS = {
    "GPTQ": (GPTQ, gptq, linear_bytes(4, 128)),
    "GPTQ with act-order": ({**GPTQ, "desc_act": True}, gptq, linear_bytes(4, 128)),
    "AWQ": (AWQ, awq, linear_bytes(4, 128)),
    "W4A16": (compressed("pack-quantized", 4), packed, linear_bytes(4, 128)),
    "W8A8": (compressed("int-quantized", 8), int8, linear_bytes(8, 256)),
    "FP8": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "static"}, fp8,
        2 * sum(rows * columns for rows, columns in (SHAPES[name] for name in LINEAR)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SERVED_CHECKPOINTS)
def test_quantized_checkpoints_are_planned_with_the_bytes_of_their_codes(what: str, tmp_path: Path) -> None:
    settings, layer, expected = SERVED_CHECKPOINTS[what]
    folder = model(tmp_path / "m", settings, layer)
    profile = planned(folder)
    assert isinstance(profile, Profile), profile
    assert loaded(folder) == ""
    assert profile.weight_bytes(0, len(profile.layers)) == REST + expected
    held = sum(SHAPES[name][0] * SHAPES[name][1] for name in LINEAR) if what != "FP8" else 0
    assert sum(layer.quantized_weights for layer in profile.layers) == held


@pytest.mark.parametrize(("weights", "bits", "group"), [("Int8", 8, 128), ("Int4", 4, 32)])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_that_are_quantized_when_loaded_are_planned_so(weights: str, bits: int, group: int, tied: bool, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", None, None, {"lm_head.weight": None} if tied else None, tie_word_embeddings=tied)
    profile, plain = of_weights(folder, weights), of_weights(folder, "AsStored")
    assert isinstance(profile, Profile)
    assert isinstance(plain, Profile)
    table = 1024 * 256 + 1024 * (2 * 256 // 128) * 4  # rows are filled up to a multiple of 64
    norms = 2 * 256 * 5
    assert profile.weight_bytes(0, 4) == linear_bytes(bits, group) + norms + table * (1 if tied else 2)
    assert profile.weight_bytes(3, 4) == table + 2 * 256
    assert profile.layers[1].flops_per_token == plain.layers[1].flops_per_token
    assert profile.digest != plain.digest, "segments of other forms are others, by name"
    assert len({of_weights(folder, other).digest for other in ("AsStored", "Int8", "Int4")}) == 3  # type: ignore[union-attr]


def of_weights(folder: Path, weights: str) -> Profile | str:
    try:
        _, table = tensor_tables(str(folder))
        return profile_from_model(read_json(str(folder), CONFIG_FILE), table, "bfloat16", files=file_names(str(folder)), weights=weights)
    except ModelRefusedError as error:
        return str(error)


UP = "model.layers.1.mlp.up_proj"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"settings": BNB, "layer": None}, "(bitsandbytes) are not served: quantization_config in config.json. Their layout"),
    "GPTQ of 3 bits": ({"settings": {**GPTQ, "bits": 3}, "layer": gptq}, "bits is 3; served are 4, 8"),
    "GPTQ with null bits": ({"settings": {**GPTQ, "bits": None}, "layer": gptq}, "bits is null; served are 4, 8"),
    "GPTQ for Marlin": ({"settings": {**GPTQ, "checkpoint_format": "marlin"}, "layer": gptq}, "checkpoint_format 'marlin' is not served"),
    "GPTQ with layers of their own": ({"settings": {**GPTQ, "dynamic": {"-:.*": {}}}, "layer": gptq}, "(dynamic) is not served"),
    "GPTQ without zeros": ({"settings": GPTQ, "layer": gptq, "change": {f"{UP}.qzeros": None}}, f"tensor {UP}.qzeros is missing"),
    "GPTQ with other scales": ({"settings": GPTQ, "layer": gptq, "change": {f"{UP}.scales": (2, 511)}}, "scales has shape [2, 511], the other"),
    "GPTQ with groups that do not fit": ({"settings": GPTQ, "layer": gptq, "change": {f"{UP}.scales": (3, 512)}}, "256 inputs do not make 3"),
    "GPTQ of another size": (
        {"settings": GPTQ, "layer": gptq, "change": {f"{UP}.qweight": (64, 512), f"{UP}.g_idx": (512,)}},
        f"tensor {UP}.weight has shape [512, 512], config.json says [512, 256]",
    ),
    "GPTQ with an order of another length": ({"settings": GPTQ, "layer": gptq, "change": {f"{UP}.g_idx": (255,)}}, "g_idx has shape [255]"),
    "GPTQ and the weight besides": (
        {"settings": GPTQ, "layer": gptq, "change": {f"{UP}.weight": (512, 256)}}, f"{UP}.weight is stored twice",
    ),
    "GPTQ in words alone": ({"settings": GPTQ, "layer": None}, "says GPTQ, and no tensor is quantized so"),
    "AWQ of gemv": ({"settings": {**AWQ, "version": "gemv"}, "layer": awq}, "version 'gemv' is not served"),
    "AWQ without zeros": ({"settings": AWQ, "layer": awq, "change": {f"{UP}.qzeros": None}}, "AWQ without zero points"),
    "NVFP4": ({"settings": compressed("nvfp4-pack-quantized", 4, "float"), "layer": packed}, "of format 'nvfp4-pack-quantized' is not served"),
    "a null format": ({"settings": {**compressed("pack-quantized", 4), "format": None}, "layer": packed}, "is not served; served are pack"),
    "sparse weights": (
        {"settings": {**compressed("pack-quantized", 4), "sparsity_config": {"format": "sparse-24-bitmask"}}, "layer": packed}, "sparse weights",
    ),
    "compressed-tensors without groups": (
        {"settings": {**compressed("pack-quantized", 4), "config_groups": None}, "layer": packed}, "of one num_bits, 4 or 8",
    ),
    "W4A16 without scales": (
        {"settings": compressed("pack-quantized", 4), "layer": packed, "change": {f"{UP}.weight_scale": None}}, f"{UP}.weight_scale is missing",
    ),
    "FP8 without its blocks": ({"settings": {"quant_method": "fp8"}, "layer": fp8}, "config.json does not say the blocks of its scales"),
    "FP8 without scales": (
        {"settings": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "layer": fp8, "change": {f"{UP}.weight_scale_inv": None}}, f"{UP}.weight_scale is missing",
    ),
    "ModelOpt": ({"settings": {"quant_method": "modelopt", "quant_algo": "FP8"}, "layer": fp8}, "(ModelOpt) are not served"),
    "a list of settings": ({"settings": [GPTQ], "layer": gptq}, "quantized weights are not served: quantization_config"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_refused_when_it_is_planned(what: str, tmp_path: Path) -> None:
    arguments, words = REFUSED[what]
    folder = model(tmp_path / "m", **arguments)
    reason = by_plan_command(folder)
    assert words in str(reason)
    assert loaded(folder) == reason


def test_quantizing_a_quantized_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", GPTQ, gptq)
    assert "weights Int8 is for checkpoints in 16 or 32 bits" in str(of_weights(folder, "Int8"))
    with pytest.raises(UnsupportedModelError, match="is quantized already: use AsStored"):
        accepted(folder, "Int8")


def _case(name: str) -> Case:
    return next(case for case in CORPUS if case.name == name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mixtral-8x7B-v0.1", "weights Int4 is not served for mixtures of experts"),
        ("all-MiniLM-L6-v2", "quantized weights are served for decoders alone, and this is 'bert': weights Int4 was asked for"),
    ],
)
def test_models_without_quantized_weights_are_refused(name: str, words: str, tmp_path: Path) -> None:
    assert words in str(of_weights(written(_case(name), tmp_path / "m"), "Int4"))


def test_an_encoder_that_is_quantized_is_refused(tmp_path: Path) -> None:
    case = _case("all-MiniLM-L6-v2")
    name = "encoder.layer.0.output.dense"
    shapes = {key: shape for key, shape in case.shapes.items() if key != f"{name}.weight"} | {f"{name}.qweight": (192, 384)}
    shapes |= {f"{name}.scales": (12, 384), f"{name}.qzeros": (12, 48)}
    folder = tables.model(tmp_path / "m", {**case.config, "quantization_config": GPTQ}, shapes)
    assert "and this is 'bert': its checkpoint is quantized" in str(by_plan_command(folder))


@pytest.mark.parametrize("case", [case for case in SERVED if case.name in ("Llama-3.1-8B", "Qwen2.5-0.5B", "GPT-2", "Gemma-3-1B")], ids=str)
def test_a_public_model_takes_a_half_and_a_third_of_its_bytes(case: Case, tmp_path: Path) -> None:
    folder = written(case, tmp_path / "m")
    plain, eight, four = (of_weights(folder, weights) for weights in ("AsStored", "Int8", "Int4"))
    assert isinstance(plain, Profile)
    assert isinstance(eight, Profile)
    assert isinstance(four, Profile)
    last = len(plain.layers)
    assert 0.5 < eight.weight_bytes(0, last) / plain.weight_bytes(0, last) < 0.6 or case.name == "GPT-2"
    assert four.weight_bytes(1, last - 1) / plain.weight_bytes(1, last - 1) == pytest.approx(0.3125, abs=0.003)
