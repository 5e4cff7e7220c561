"""What families do beside their blocks: factors of the embedding, the RoPE of each kind of attention, what becomes of the head's logits.

transformers does it in the forward pass of the whole model, which a segment does not have.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from splitinference_modelfiles.rules.families import Family


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
