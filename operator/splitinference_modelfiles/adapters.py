"""What an adapter's folder in PEFT's format says, and what of that format is served: LoRA on linear layers of a decoder's blocks.

`adapter_config.json` has rank, scaling and what is beyond plain LoRA; `adapter_model.safetensors` has a pair of tensors for each layer.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard, TypeVar

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MOST_CONFIG_BYTES = 1 << 20
MOST_RANK = 1024
_NAME = re.compile(r"base_model\.model\.(?:[a-z_]+\.)*?(?:layers|h)\.(\d{1,5})\.(.+)\.lora_([AB])(?:\.default)?\.weight")
BEYOND: Mapping[str, str] = {
    "use_dora": "DoRA scales whole weights, which segments keep as they are",
    "modules_to_save": "it replaces whole layers of the model",
    "target_parameters": "it changes experts that are one tensor",
    "trainable_token_indices": "it changes rows of the embedding",
    "layer_replication": "it changes the number of layers",
    "lora_bias": "it adds biases",
    "use_qalora": "QALoRA pools the inputs",
    "alora_invocation_tokens": "activated LoRA depends on tokens of the prompt",
    "megatron_config": "it is for Megatron's layers",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "it chooses among several adapters for each token",
}
_CHANGES_WEIGHTS = ("pissa", "olora", "corda", "loftq")
"""Ways to begin that change the model's own weights, which are then part of the adapter's meaning."""


class AdapterRefusedError(ValueError):
    """The adapter is not served; the message says why, and what to do."""


@dataclass(frozen=True)
class LoraConfig:
    """Rank and scaling. The patterns are regular expressions of paths, or their ends."""

    rank: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def scaling(self, path: str, rank: int) -> float:
        """The factor of B·A of the layer at this path: alpha over the rank, or over its square root (rank-stabilized LoRA)."""
        alpha = _matching(self.alpha_pattern, path, self.alpha)
        return alpha / (rank**0.5 if self.rslora else rank)

    def rank_of(self, path: str) -> int:
        """The rank of the layer at this path."""
        return _matching(self.rank_pattern, path, self.rank)


@dataclass(frozen=True)
class LoraTensor:
    """Which half (A or B) of which linear layer a tensor is. `path`: of the layer in the whole model."""

    block: int
    layer: str
    half: str
    path: str


_N = TypeVar("_N", int, float)


def _matching(pattern: Mapping[str, _N], path: str, default: _N) -> _N:
    return next((value for key, value in pattern.items() if re.fullmatch(rf"(.*\.)?({key})", path)), default)


def read_config(text: bytes) -> LoraConfig:
    """The configuration. AdapterRefusedError names what is wrong, or not served."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        raise AdapterRefusedError(f"{CONFIG} is not JSON") from None
    if not isinstance(config, dict):
        raise AdapterRefusedError(f"{CONFIG} is not a JSON object")
    _check_kind(config)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not _is_rank(rank):
        raise AdapterRefusedError(f"r is {rank!r:.40}, expected a whole number from 1 to {MOST_RANK}")
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not isinstance(ranks, dict) or not all(map(_is_rank, ranks.values())):
        raise AdapterRefusedError(f"rank_pattern should be an object of whole numbers from 1 to {MOST_RANK}")
    if not _is_number(alpha) or not isinstance(alphas, dict) or not all(map(_is_number, alphas.values())):
        raise AdapterRefusedError("lora_alpha and alpha_pattern should be numbers")
    for pattern in (*ranks, *alphas):
        _check_pattern(pattern)
    return LoraConfig(int(rank), float(alpha), bool(config.get("use_rslora")), ranks, alphas)


def _check_kind(config: Mapping[str, Any]) -> None:
    """Plain LoRA of a model that generates text."""
    if (kind := config.get("peft_type")) != "LORA":
        raise AdapterRefusedError(f"peft_type is {kind!r:.80}; LORA is served")
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise AdapterRefusedError(f"task_type is {task!r:.80}; adapters are for models that generate text (CAUSAL_LM)")
    for key, why in BEYOND.items():
        if config.get(key):
            raise AdapterRefusedError(f"{key} is not served: {why}. Merge the adapter into the model, or train it without")
    if config.get("bias", "none") != "none":
        raise AdapterRefusedError(f"bias is {config['bias']!r:.40}; served is none. Merge the adapter into the model, or train it without")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_WEIGHTS):
        raise AdapterRefusedError(
            f"init_lora_weights is {start!r:.40}, which changes the model's own weights: save the adapter with "
            "path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
        )


def _check_pattern(pattern: str) -> None:
    """What is matched is short, but a pattern may still take for ever."""
    if not re.fullmatch(r"[\w.\^\$\\*\[\]|()-]{1,200}", pattern) or re.search(r"[*+)]\s*[*+]|\)[*+{]", pattern):
        raise AdapterRefusedError(f"{pattern!r:.100} in rank_pattern or alpha_pattern is not a path, or a simple pattern of paths")
    try:
        re.compile(pattern)
    except re.error as error:
        raise AdapterRefusedError(f"{pattern!r:.100} in rank_pattern or alpha_pattern is no regular expression: {error}") from None


def _is_rank(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_RANK


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def read_names(names: Iterable[str]) -> Mapping[str, LoraTensor]:
    """What each tensor of the adapter is. AdapterRefusedError names one that is no LoRA of a linear layer in a block, or lacks its half."""
    found: dict[str, LoraTensor] = {}
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise AdapterRefusedError(
                f"the tensor {name!r:.200} is no LoRA of a linear layer in a block; embedding, head and other layers are not served"
            )
        if "expert" in match[2]:
            raise AdapterRefusedError(
                f"the tensor {name!r:.200} changes an expert, which is not served: its rows are those that a router chooses"
            )
        path = re.sub(r"\.lora_[AB](?:\.default)?\.weight$", "", name).removeprefix("base_model.model.")
        found[name] = LoraTensor(int(match[1]), match[2], match[3], path)
    if not found:
        raise AdapterRefusedError(f"{WEIGHTS} has no tensors")
    halves = {(tensor.block, tensor.layer, tensor.half): name for name, tensor in found.items()}
    if len(halves) < len(found):
        raise AdapterRefusedError("two tensors of the adapter are for the same half of one layer")
    for (block, layer, half), name in halves.items():
        if (block, layer, "B" if half == "A" else "A") not in halves:
            raise AdapterRefusedError(f"the tensor {name!r:.200} lacks its other half")
    return found
