"""A model's configuration as transformers has it, and what families do beside their blocks: factors of the embedding, the RoPE of each kind
of attention, what becomes of the head's logits.

transformers does the latter in the forward pass of the whole model, which a segment does not have.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from splitinference_modelfiles.rules.families import DECODERS, Family
from splitinference_modelfiles.stored.folder import CONFIG, read_json

QUANTIZATION = ("quantization_config", "compression_config")
_NOT_READ = frozenset(
    {
        "auto_map",  # code of the model's own is never run
        "dtype", "torch_dtype",  # the resource says it
        *QUANTIZATION,  # this package unpacks codes
        "attn_implementation", "_attn_implementation",  # attention is this package's
    }
)  # fmt: skip
_OF_CLASSIFIERS = frozenset({"num_labels", "id2label", "label2id", "problem_type"})
_OF_ROPE = frozenset({"rope_scaling", "rope_parameters", "rope_theta"})
_OF_TRAINING = re.compile(r"(?:dropout|dropout_prob|_pdrop|router_jitter_noise|router_aux_loss_coef)$")


def configuration(folder: Path) -> Any:
    """Of a model that is accepted. What config.json says of other things is left out, so that nothing there can fail."""
    told = read_json(str(folder), CONFIG)
    kind = told.pop("model_type")
    left_out = _NOT_READ | _OF_CLASSIFIERS if kind in DECODERS else _NOT_READ
    if kind not in DECODERS or DECODERS[kind].rotary is None:
        left_out |= _OF_ROPE
    return AutoConfig.for_model(
        kind, **{name: value for name, value in told.items() if name not in left_out and not _OF_TRAINING.search(name)}
    )


def is_quantized(folder: Path) -> bool:
    """Whether config.json speaks of quantized weights."""
    return any(read_json(str(folder), CONFIG).get(key) is not None for key in QUANTIZATION)


class Variant:
    """Of one model, from its configuration."""

    def __init__(self, config: Any, family: Family, blocks: Sequence[int]) -> None:
        """`blocks`: numbers of the segment's own blocks."""
        # By family: config.json may say of such things what transformers does not read for this one.
        self._scale = config.embedding_multiplier if family.multipliers else None
        self._divisor = config.logits_scaling if family.multipliers else None
        self._cap = config.final_logit_softcapping if family.caps else None
        self._kinds = tuple(config.layer_types[block] for block in blocks) if family.ropes_by_kind else ()

    def embedded(self, hidden: torch.Tensor) -> torch.Tensor:
        """What enters the first block."""
        return hidden if self._scale is None else hidden * self._scale

    def rotations(self, rotary: nn.Module | None, hidden: torch.Tensor, position_ids: torch.Tensor) -> "Rotations":
        """The rotation of each of the segment's blocks."""
        if rotary is None:
            return Rotations(None, {}, ())
        if not self._kinds:
            return Rotations(rotary(hidden, position_ids=position_ids), {}, ())
        return Rotations(None, {kind: rotary(hidden, position_ids, kind) for kind in set(self._kinds)}, self._kinds)

    def logits(self, logits: torch.Tensor) -> torch.Tensor:
        """What the model says of the head's output."""
        if self._divisor is not None:
            logits = logits / self._divisor
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits


class Rotations:
    """What blocks are given as `position_embeddings`."""

    def __init__(self, one: Any, by_kind: Mapping[str, Any], kinds: Sequence[str]) -> None:
        self._one, self._by_kind, self._kinds = one, by_kind, kinds

    def of(self, index: int) -> dict[str, Any]:
        """Arguments of the segment's block `index`."""
        found = self._by_kind[self._kinds[index]] if self._kinds else self._one
        return {} if found is None else {"position_embeddings": found}
