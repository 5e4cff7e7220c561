"""The torch engine: a decoder's layers as transformers computes them (layers.py), with KV buffers of our own."""

from collections.abc import Sequence
from functools import partial

import torch

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.request import INT8, Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment import drafting
from splitinference_segment.choices import Choice
from splitinference_segment.engine import Output, Work
from splitinference_segment.torch_models.adapters import TorchAdapters
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.stateless import as_tensor
from splitinference_segment.torch_ops import comparison
from splitinference_segment.torch_ops.encoding import encode
from splitinference_segment.torch_ops.kv_torch import KvShape
from splitinference_segment.torch_ops.sampling import sample, scored
from splitinference_segment.torch_ops.spans import Span
from splitinference_segment.verdicts import Verdict

_SCORED_TOGETHER = 16  # rows of logits, each as wide as the vocabulary


class TorchArrays:
    """Tensors; hidden states have the wire's data type."""

    def received(self, tensor: TensorMeta, data: memoryview) -> torch.Tensor:
        """A view of the bytes, where they are not encoded."""
        return as_tensor(tensor, as_bytes(data))

    def data(self, values: torch.Tensor, encoding: str) -> bytes:
        """As they are, or in int8 with scales."""
        values = values.contiguous()
        sent = encode(values) if encoding == INT8 else values.view(-1).view(torch.uint8)
        return bytes(sent.numpy().tobytes())

    def float32(self, values: torch.Tensor) -> bytes:
        """The tensor is float32 already."""
        return bytes(values.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())

    def name(self, values: torch.Tensor) -> str:
        """Such as bfloat16."""
        return str(values.dtype).removeprefix("torch.")

    def kept(self, values: torch.Tensor) -> torch.Tensor:
        """A copy in the processor's memory."""
        return values.detach().cpu().clone()

    def joined(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """One after the other."""
        return torch.cat(list(parts)) if parts else torch.empty(0)

    def finite(self, values: torch.Tensor) -> bool:
        """Neither infinite nor no number."""
        return bool(values.isfinite().all())

    def verdict(self, expected: torch.Tensor, received: torch.Tensor, position: int) -> Verdict:
        """Relative errors, as in comparison.py."""
        return comparison.verdict(expected, received, position)


def as_bytes(data: memoryview) -> torch.Tensor:
    """The same memory as a tensor, uint8. Torch makes none of nothing: then it is one zero."""
    return torch.frombuffer(data, dtype=torch.uint8) if len(data) else torch.zeros(1, dtype=torch.uint8)


class TorchEngine:
    """Layers of a decoder, and how a batch runs through them."""

    def __init__(self, layers: Layers, *, packed: bool = False, adapter_bytes: int = 0) -> None:
        """`packed`: the layers' weights are, for the log. `adapter_bytes`: memory for adapters."""
        self.layers = layers
        self.start, self.end, self.count = layers.start, layers.end, layers.count
        self.vocabulary, self.hidden, self.first_block = layers.vocabulary, layers.hidden, layers.first_block
        self.is_first, self.is_last = layers.is_first, layers.is_last
        self.arrays = TorchArrays()
        self.adapters = TorchAdapters(layers.blocks, layers.first_block, layers.linear_sizes, adapter_bytes, layers.device)
        self._packed = " packed" if packed else ""

    @property
    def kv_shape(self) -> KvShape:
        """Buffers of the layers' own shape."""
        return self.layers.kv_shape

    def description(self) -> str:
        """Size and device."""
        weights = f"{self.layers.weight_bytes() / 2**20:.1f} MiB of{self._packed} weights"
        return f"{weights}, {self.kv_shape.bytes_per_token} KV bytes per token, {self.layers.device}"

    def example(self) -> torch.Tensor:
        """A token, or a hidden state of ones."""
        return torch.ones((1,) if self.is_first else (1, self.hidden), dtype=torch.int64 if self.is_first else self.layers.dtype)

    def use_threads(self, threads: int) -> None:
        """OpenMP keeps this number per thread, so it is set where the work is done."""
        torch.set_num_threads(threads)

    def run(self, batch: Sequence[Work]) -> list[Output]:
        """Run the layers once for all rows; the last segment samples and scores."""
        spans, row = [], 0
        for work in batch:
            spans.append(Span(work.entry, row, work.tokens, work.request.position))
            row += work.tokens
        values = batch[0].values if len(batch) == 1 else torch.cat([work.values for work in batch])
        with torch.inference_mode():
            self.adapters.use([(span.start, span.tokens, work.adapter) for span, work in zip(spans, batch, strict=True)], row)
            try:
                hidden = self.layers.run(values, spans)
            finally:
                self.adapters.done()
            if self.is_last:
                return self._outputs(batch, spans, hidden)
            hidden = hidden.cpu()
            return [Output(hidden[s.start : s.start + s.tokens]) for s in spans]

    def _outputs(self, batch: Sequence[Work], spans: Sequence[Span], hidden: torch.Tensor) -> list[Output]:
        choices: list[Sequence[Choice]] = [()] * len(batch)
        asked: list[torch.Tensor | None] = [None] * len(batch)
        scores: list[Sequence[Choice]] = [()] * len(batch)
        for i, work in enumerate(batch):
            if work.request.targets:
                scores[i] = self._scored(hidden[spans[i].start : spans[i].start + spans[i].tokens], work.request)
        sampled = [i for i, work in enumerate(batch) if work.request.sample]
        if sampled:
            lines = [spans[i].start + row for i in sampled for row in drafting.rows(batch[i].request, spans[i].tokens)]
            logits = iter(self.layers.logits(hidden[lines]).split([1 + len(batch[i].request.drafts) for i in sampled]))
            for i, own in zip(sampled, logits, strict=True):
                request, last = batch[i].request, spans[i].tokens - len(batch[i].request.drafts) - 1
                if request.logits:
                    asked[i] = own[-1].cpu()
                else:
                    choices[i] = drafting.accepted(request, spans[i].tokens, partial(_sampled, own, last))
        found = zip(choices, asked, scores, strict=True)
        return [Output(None, chosen[0] if chosen else None, chosen[1:], logits, scored) for chosen, logits, scored in found]

    def _scored(self, hidden: torch.Tensor, request: Request) -> list[Choice]:
        """A few rows of logits at a time."""
        targets, made = leb128.numbers(request.targets), list[Choice]()
        for start in range(0, len(targets), _SCORED_TOGETHER):
            some = targets[start : start + _SCORED_TOGETHER]
            made += scored(self.layers.logits(hidden[start : start + len(some)]), some, request.sampling.logprobs)
        return made


def _sampled(logits: torch.Tensor, first: int, row: int, sampling: Sampling, position: int) -> Choice:
    """After a row of a step, of whose rows from `first` on there are logits."""
    return sample(logits[row - first], sampling, position)
