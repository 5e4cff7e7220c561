"""The segment's layers: built on the meta device from transformers' own modules, filled with their tensors alone, and run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from splitinference_modelfiles.held import AS_STORED, Held
from splitinference_modelfiles.models import decoder_sizes
from splitinference_modelfiles.rules.families import Family
from splitinference_modelfiles.stored.digests import Digests
from splitinference_modelfiles.stored.folder import CONFIG, read_json
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.adapters import Sizes, linear_sizes
from splitinference_segment.torch_models.families import UNSTEADY_ROPE, UnsupportedModelError, family_of
from splitinference_segment.torch_models.quantizing import take_codes
from splitinference_segment.torch_models.variants import Variant, configuration, is_quantized
from splitinference_segment.torch_models.weights import Weights, fill
from splitinference_segment.torch_ops import attention
from splitinference_segment.torch_ops.attention import Row
from splitinference_segment.torch_ops.joining import can_join, join
from splitinference_segment.torch_ops.kv_torch import KvShape
from splitinference_segment.torch_ops.packing import can_pack, packed, packed_bytes
from splitinference_segment.torch_ops.quantized import matrices
from splitinference_segment.torch_ops.spans import Span


class Layers:
    """Layers [start, end) of a model: the embedding is layer 0, the blocks 1..N, norm and head layer N + 1."""

    def __init__(
        self,
        folder: Path,
        start: int,
        end: int,
        dtype: torch.dtype,
        *,
        device: str = "cpu",
        digests: Digests | None = None,
        weights: str = AS_STORED,
    ) -> None:
        """Build and load. `weights`: how matrices are held, as `spec.model.weights` says. UnsupportedModelError, MissingWeightsError or
        MismatchError say why not."""
        config = configuration(folder)
        held = accepted(folder, weights)[1].held if weights != AS_STORED or is_quantized(folder) else {}
        family = family_of(config.model_type)
        count = config.num_hidden_layers + 2
        if not 0 <= start < end <= count:
            raise UnsupportedModelError(f"layers {start}:{end} are not in this model, which has 0:{count}")
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type", "default") in UNSTEADY_ROPE and not family.longrope:
            raise UnsupportedModelError(f"rope_type {rope['rope_type']!r} is not served: it depends on other sequences")
        self.start, self.end, self.count = start, end, count
        self.dtype, self.device = dtype, torch.device(device)
        self.vocabulary = int(config.vocab_size)
        self.hidden = int(config.hidden_size)
        self.first_block = max(start, 1) - 1
        self.is_first, self.is_last = start == 0, end == count
        self.embedding: nn.Module | None = None
        self.positions: nn.Module | None = None
        self.rotary: nn.Module | None = None
        self.norm: nn.Module | None = None
        self.head: nn.Module | None = None
        self.blocks: list[nn.Module] = []
        self._take(config, family, Weights(folder, digests), held)
        self._variant = Variant(config, family, range(self.first_block, self.first_block + len(self.blocks)))
        sizes = decoder_sizes(read_json(str(folder), CONFIG), config.model_type, family)
        self.kv_shape = KvShape(len(self.blocks), sizes.kv_heads, sizes.head_dim, dtype, device)

    def _take(self, config: Any, family: Family, weights: Weights, held: Mapping[str, Held]) -> None:
        with torch.device("meta"):
            whole = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        whole.config._attn_implementation = attention.NAME
        whole.eval().requires_grad_(False)
        own: dict[str, nn.Module] = {}
        if self.is_first:
            own[family.embedding] = whole.get_submodule(family.embedding)
            if family.positions is not None:
                own[family.positions] = whole.get_submodule(family.positions)
        blocks = range(self.first_block, min(self.end - 1, config.num_hidden_layers))
        for index in blocks:
            own[f"{family.blocks}.{index}"] = whole.get_submodule(f"{family.blocks}.{index}")
        if self.is_last:
            own[family.norm] = whole.get_submodule(family.norm)
            own[family.head] = whole.get_submodule(family.head)
        ties = self._ties(config, family)
        # Adapters name the layers as transformers has them, before they are quantized, joined or packed.
        self.linear_sizes: Sizes = linear_sizes([own[f"{family.blocks}.{index}"] for index in blocks], self.first_block)
        if held:
            own = take_codes(own, weights, whole.base_model_prefix, ties, held, dtype=self.dtype, device=self.device)
        self.embedding, self.positions = own.get(family.embedding), own.get(family.positions or "")
        self.blocks = [own[f"{family.blocks}.{index}"] for index in blocks]
        self.norm, self.head = own.get(family.norm), own.get(family.head)
        if family.rotary is not None and self.blocks:
            self.rotary = type(whole.get_submodule(family.rotary))(config=config).to(self.device)
        fill(own, weights, whole.base_model_prefix, ties, dtype=self.dtype, device=self.device, experts=family.experts)
        if self.embedding is not None and hasattr(self.embedding, "scalar_embed_scale"):  # Gemma's, a buffer not in the files
            self.embedding.embed_scale = torch.tensor(self.embedding.scalar_embed_scale, device=self.device)
        for path, module in own.items():
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.is_meta:
                    raise UnsupportedModelError(f"{path}.{name} is neither in the files nor known to be computed")
        for block in self.blocks:
            join(block, plain=can_join(self.dtype, self.device))

    @staticmethod
    def _ties(config: Any, family: Family) -> dict[str, tuple[str, ...]]:
        """Names under which a tied weight may be stored, best first.

        A head that is stored is the head, as in transformers: it ties the head to the embedding only where the head is not stored, or has
        the same values (PreTrainedModel.tie_weights of 5.23 warns, and does not tie, where the values differ).
        """
        head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
        return {head: (head, embedding), embedding: (embedding, head)} if config.tie_word_embeddings else {}

    def weight_bytes(self) -> int:
        """Bytes of weights held; tensors that are shared count once."""
        parts = (self.embedding, self.positions, *self.blocks, self.norm, self.head)
        modules = [module for module in parts if module is not None]
        tensors = {p.data_ptr(): p.nbytes for module in modules for p in module.parameters()}
        return int(sum(tensors.values())) + packed_bytes(modules) + sum(matrix.nbytes for matrix in matrices(modules))

    def pack(self) -> bool:
        """Pack the weights of linear layers (see packing.py); a head that shares its weight with the embedding stays. False: not here."""
        if not can_pack(self.dtype, self.device):
            return False
        shared = [p.data_ptr() for p in self.embedding.parameters()] if self.embedding is not None else []
        for block in self.blocks:
            packed(block)
        if self.head is not None:
            self.head = packed(self.head, shared)
        return True

    def run(self, values: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
        """Run the layers on a row of tokens: ids [row] for the first segment, else hidden states [row, hidden] → [row, hidden].

        The norm and the head are apart (`logits`), because only the tokens that are sampled need them.
        """
        position_ids = torch.tensor([[p for s in spans for p in range(s.position, s.position + s.tokens)]], device=self.device)
        values = values.to(self.device)
        if self.embedding is not None:
            hidden = self.embedding(values[None])
            if self.positions is not None:
                hidden = hidden + self.positions(position_ids)
            hidden = self._variant.embedded(hidden)
        else:
            hidden = values[None]
        if self.blocks:
            row = Row(spans, self.first_block)
            rotations = self._variant.rotations(self.rotary, hidden, position_ids)
            for index, block in enumerate(self.blocks):
                hidden = block(hidden, attention_mask=None, row=row, **rotations.of(index))
        result: torch.Tensor = hidden[0]
        return result

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits in float32, [n, vocabulary], of hidden states [n, hidden] after the last block. For the last segment alone."""
        if self.norm is None or self.head is None:
            raise TypeError("only the last segment has a head")
        result: torch.Tensor = self._variant.logits(self.head(self.norm(hidden))).float()
        return result
