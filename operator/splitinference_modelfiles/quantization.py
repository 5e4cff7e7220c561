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


def refuse_quantized(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo | None], files: Collection[str]) -> None:
    """ModelRefusedError with the method and where it is said. The most telling sign comes first."""
    for key in _KEYS:
        if (found := config.get(key)) is not None:
            raise _refusal(_method(found), f"{key} in config.json")
    for file, method in _FILES.items():
        if file in files:
            raise _refusal(method, file)
    for name, tensor in tensors.items():
        for pattern, method in _NAMES:
            if pattern.search(name):
                raise _refusal(method, f"tensor {name}")
        if tensor is not None and tensor.dtype.startswith(("F8_", "F4", "F6_")):
            raise _refusal(
                "MXFP4 or another small float" if tensor.dtype.startswith(("F4", "F6_")) else "FP8",
                f"tensor {name} is stored as {tensor.dtype}",
            )


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


def _refusal(method: str, where: str) -> ModelRefusedError:
    what = f"quantized weights ({method})" if method else "quantized weights"
    return ModelRefusedError(f"{what} are not served: {where}. Use the checkpoint with weights in float32, float16 or bfloat16")
