"""Encoders of BERT's kind: an embedding with positions, blocks in which every token sees every other, and the head of the architecture.

Nothing is sampled and nothing is kept. Rows of one request have equal length and no padding, so no attention mask travels; the
arithmetic is that of transformers' own modules with `sdpa` attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from splitinference_modelfiles.stored.digests import Digests
from splitinference_protocol.wire.errors import BAD_REQUEST, SegmentError
from splitinference_protocol.wire.request import TensorMeta
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.tensor_models.stateless import NO_KV, as_tensor, not_taken
from splitinference_segment.torch_models.variants import configuration
from splitinference_segment.torch_models.weights import Weights, fill


@dataclass(frozen=True, slots=True)
class Head:
    """What follows the blocks: modules applied in turn to the hidden states, and the name of what comes out."""

    modules: tuple[str, ...]
    output: str = "logits"


# By the architecture's ending. A leading dot: a module of the base model. Models without a head also give the hidden states themselves.
_BERT = {
    "Model": Head((".pooler",), "pooler_output"),
    "ForMaskedLM": Head(("cls",)),
    "ForSequenceClassification": Head((".pooler", "classifier")),
    "ForTokenClassification": Head(("classifier",)),
}
_ROBERTA = {
    "Model": Head(()),
    "ForMaskedLM": Head(("lm_head",)),
    "ForSequenceClassification": Head(("classifier",)),
    "ForTokenClassification": Head(("classifier",)),
}
ENCODERS: Mapping[str, Mapping[str, Head]] = {"bert": _BERT, "roberta": _ROBERTA, "xlm-roberta": _ROBERTA}
HIDDEN_STATES = "last_hidden_state"


def head_of(model_type: str, architecture: str) -> Head:
    """The head of an architecture such as `BertForMaskedLM`. UnsupportedModelError when it is not served."""
    heads = ENCODERS[model_type]
    for ending, head in heads.items():
        if architecture.endswith(ending):
            return head
    raise UnsupportedModelError(f"architecture {architecture!r} is not served; those of {model_type} are: …{', …'.join(heads)}")


class EncoderLayers:
    """Layers [start, end): the embedding is layer 0, the blocks 1..N, the head (which may be nothing) layer N + 1."""

    def __init__(
        self, folder: Path, start: int, end: int, dtype: torch.dtype, *, device: str = "cpu", digests: Digests | None = None
    ) -> None:
        """Build and load. UnsupportedModelError, MissingWeightsError or MismatchError say why not."""
        config = configuration(folder)
        count = config.num_hidden_layers + 2
        if not 0 <= start < end <= count:
            raise UnsupportedModelError(f"layers {start}:{end} are not in this model, which has 0:{count}")
        if getattr(config, "is_decoder", False):
            raise UnsupportedModelError(f"{config.model_type} as a decoder is not served")
        self.start, self.end, self.count = start, end, count
        self.kv_shape = NO_KV
        self.is_first, self.is_last = start == 0, end == count
        self.dtype, self.device = dtype, torch.device(device)
        self.hidden, self.vocabulary, self.types = int(config.hidden_size), int(config.vocab_size), int(config.type_vocab_size)
        first_position = 0 if config.model_type == "bert" else int(config.pad_token_id) + 1
        self.positions = int(config.max_position_embeddings) - first_position
        architecture = str((config.architectures or [f"{config.model_type}Model"])[0])
        self._bare = architecture.endswith("Model")
        self._head = head_of(config.model_type, architecture)
        self.output = self._head.output
        self._embedding: nn.Module | None = None
        self._blocks: list[nn.Module] = []
        self._heads: list[nn.Module] = []
        self._take(config, architecture, Weights(folder, digests))

    def _take(self, config: Any, architecture: str, weights: Weights) -> None:
        with torch.device("meta"):
            whole = getattr(transformers, architecture)._from_config(config, dtype=self.dtype, attn_implementation="sdpa")
        whole.eval().requires_grad_(False)
        base = "" if self._bare else f"{whole.base_model_prefix}."
        own: dict[str, nn.Module] = {}
        if self.is_first:
            self._embedding = own[f"{base}embeddings"] = whole.get_submodule(f"{base}embeddings")
            for name in ("position_ids", "token_type_ids"):  # computed, not stored
                shape = (1, config.max_position_embeddings)
                values = torch.arange(shape[1]).expand(shape) if name == "position_ids" else torch.zeros(shape, dtype=torch.int64)
                setattr(self._embedding, name, values.to(self.device))
        blocks = whole.get_submodule(f"{base}encoder.layer")
        for index in range(max(self.start, 1) - 1, min(self.end - 1, config.num_hidden_layers)):
            own[f"{base}encoder.layer.{index}"] = blocks[index]
            self._blocks.append(blocks[index])
        if self.is_last:
            for name in self._head.modules:
                path = base + name[1:] if name.startswith(".") else name
                own[path] = whole.get_submodule(path)
                self._heads.append(own[path])
        # What is stored wins over what it is tied to, as in transformers (see Layers._ties).
        tied = (whole._tied_weights_keys or {}) if config.tie_word_embeddings else {}
        ties = {name: (name, source) for name, source in tied.items()} | {source: (source, name) for name, source in tied.items()}
        fill(own, weights, whole.base_model_prefix, ties, dtype=self.dtype, device=self.device)

    def weight_bytes(self) -> int:
        """Bytes of weights held; tensors that are shared count once."""
        modules = [self._embedding, *self._blocks, *self._heads]
        return sum({p.data_ptr(): p.nbytes for module in modules if module is not None for p in module.parameters()}.values())

    def values(self, tensor: TensorMeta, data: torch.Tensor, most_tokens: int) -> torch.Tensor:
        """First segment: int64 [1 or 2, rows, tokens], ids and token types. Others: hidden states [rows, tokens, hidden]."""
        expected = "int64" if self.is_first else str(self.dtype).removeprefix("torch.")
        fits = len(tensor.shape) == 3 and (tensor.shape[0] in (1, 2) if self.is_first else tensor.shape[2] == self.hidden)
        if tensor.dtype != expected or not fits:
            takes = "int64 [1 or 2, rows, tokens]" if self.is_first else f"{expected} [rows, tokens, {self.hidden}]"
            raise not_taken(self, takes, tensor)
        tokens = tensor.shape[2] if self.is_first else tensor.shape[1]
        if tokens > (most := min(most_tokens, self.positions)):
            raise SegmentError(BAD_REQUEST, f"{tokens} tokens are beyond the longest context, {most}")
        values = as_tensor(tensor, data)
        if self.is_first:
            for name, given, limit in zip(("token ids", "token types"), values, (self.vocabulary, self.types), strict=False):
                if int(given.min()) < 0 or int(given.max()) >= limit:
                    raise SegmentError(BAD_REQUEST, f"{name} should be 0 to {limit - 1}, got {given.min()}..{given.max()}")
        return values

    def example(self) -> torch.Tensor:
        """One token, or its hidden state."""
        return torch.ones((1, 1, 1), dtype=torch.int64) if self.is_first else torch.ones((1, 1, self.hidden), dtype=self.dtype)

    def run(self, values: torch.Tensor) -> torch.Tensor:
        """Run the embedding and the blocks of this segment: [rows, tokens, hidden]."""
        return self.run_part(values, self.start, self.end)

    def run_part(self, values: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """Run the embedding and blocks among layers [start, end): [rows, tokens, hidden]."""
        hidden = values.to(self.device)
        if start == 0 and self._embedding is not None:
            hidden = self._embedding(input_ids=hidden[0], token_type_ids=hidden[1] if len(hidden) > 1 else None)
        first = max(self.start, 1)  # the layer of the first block
        for block in self._blocks[max(start, first) - first : max(end, first) - first]:
            hidden = block(hidden, None)
        return hidden

    def outputs(self, hidden: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The head's result by name; of a model without a head its hidden states, and what its pooler makes of them."""
        made = {HIDDEN_STATES: hidden.float()} if self._bare else {}
        if self._heads:
            for module in self._heads:
                hidden = module(hidden)
            made[self._head.output] = hidden.float()
        return made
