"""Which checkpoints hold quantized weights, and by which method: from the configuration, tensors' names and data types, and other files."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

_KEYS = ("quantization_config", "compression_config")
_FILES = {"quantize_config.json": "GPTQ", "quant_config.json": "AWQ", "hf_quant_config.json": "ModelOpt", "quantization_config.json": ""}
_NAMED = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "mxfp4": "MXFP4", "fp8": "FP8", "fbgemm_fp8": "FP8",
    "compressed-tensors": "compressed-tensors", "compressed_tensors": "compressed-tensors", "modelopt": "ModelOpt",
}  # fmt: skip
_NAMES = (
    (re.compile(r"\.SCB$|\.(?:absmax|quant_map|nested_absmax|nested_quant_map)$|\.quant_state\."), "bitsandbytes"),
    (re.compile(r"\.g_idx$"), "GPTQ"),
    (re.compile(r"\.(?:qweight|qzeros)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(?:weight_packed|weight_shape|weight_zero_point|weight_global_scale)$"), "compressed-tensors"),
    (re.compile(r"_blocks$"), "MXFP4"),
    (re.compile(r"\.(?:weight_scale|weight_scale_inv|input_scale|output_scale|k_scale|v_scale)$"), "FP8 or INT8"),
)
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Data types in which weights may be stored; each is cast to the serving dtype."""


READ = ("GPTQ", "AWQ", "FP8", "compressed-tensors")
"""Methods that checkpoints.py reads, where config.json describes them."""
_WHY = {
    "bitsandbytes": "Their layout is that library's own, for its GPU kernels. Save the model once after transformers' `dequantize()`",
}


def method_of(
    config: Mapping[str, Any], tensors: Mapping[str, TensorInfo | None], files: Collection[str]
) -> tuple[str, Mapping[str, Any], str] | None:
    """The method, its settings, and where they are said; None where no weight is quantized. ModelRefusedError where only a file beside
    config.json, a name or a data type tells of it: then nobody says what the codes mean. The most telling sign comes first."""
    for key in _KEYS:
        if (found := config.get(key)) is not None:
            where, method = f"{key} in config.json", _method(found)
            if not isinstance(found, Mapping) or not method.startswith(READ):
                raise refusal(method, where)
            return method, found, where
    text = config.get("text_config")
    if isinstance(text, Mapping) and any(text.get(key) is not None for key in _KEYS):
        raise refusal("", "text_config in config.json")
    for file, method in _FILES.items():
        if file in files:
            raise refusal(
                method, file, f"write what it says into config.json as quantization_config, with its quant_method, or {_OTHERWISE}"
            )
    for name, tensor in tensors.items():
        for pattern, method in _NAMES:
            if pattern.search(name):
                raise refusal(method, f"tensor {name}")
        if tensor is not None and tensor.dtype.startswith(("F8_", "F4", "F6_")):
            raise refusal(
                "MXFP4 or another small float" if tensor.dtype.startswith(("F4", "F6_")) else "FP8",
                f"tensor {name} is stored as {tensor.dtype}",
            )
    return None


def _method(found: Any) -> str:
    if not isinstance(found, Mapping):
        return ""
    method = str(found.get("quant_method") or found.get("quant_type") or "")
    if not method and (found.get("load_in_4bit") or found.get("load_in_8bit")):
        method = "bitsandbytes"
    if not method and "config_groups" in found:
        method = "compressed-tensors"
    named = _NAMED.get(method.lower(), method[:40])
    inner = str(found.get("format") or "")
    return f"{named} ({inner[:40]})" if inner and named == "compressed-tensors" else named


_OTHERWISE = "use the checkpoint with weights in float32, float16 or bfloat16"


def refusal(method: str, where: str, instead: str = _OTHERWISE) -> ModelRefusedError:
    """Why these weights are not served."""
    what = f"quantized weights ({method})" if method else "quantized weights"
    why = _WHY.get(method, "")
    return ModelRefusedError(f"{what} are not served: {where}. {why or instead[0].upper() + instead[1:]}")
