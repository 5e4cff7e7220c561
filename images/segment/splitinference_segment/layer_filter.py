"""A filter over what the model's first layers make of a row, in the first segment: rows that it skips go no further.

The gateway names the filter with each request, and judges it by the comparisons that come back with the answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitinference_protocol.input_filter import FilterError, InputFilter, Of, read_filter
from splitinference_protocol.wire import answers
from splitinference_protocol.wire.errors import INTERNAL, SegmentError
from splitinference_segment.torch_models.tensor_models.stateless import Stateless

Send = Callable[[bytes, bytes], None]


def features_of(hidden: torch.Tensor, tokens: bool) -> torch.Tensor:
    """What the filter sees of hidden states: the mean over a row's tokens [rows, hidden], or all values of a row; float32."""
    return hidden.float().mean(dim=1) if tokens else hidden.float().flatten(1)


class LayerFilter:
    """One filter of mode Skip over layers, ready to run."""

    def __init__(self, told: InputFilter) -> None:
        """`told`: as its file has it."""
        made, features = torch.tensor, told.features
        self.told, self.layers, self.inputs = told, features.layers, features.inputs
        self._mean, self._scale = made(features.mean), made(features.scale)
        self._hidden = made(features.hidden) if features.hidden else None
        self._hidden_bias, self._weight = made(features.hidden_bias), made(told.weight)
        self.answer = made(told.answer, dtype=torch.float32)

    def skips(self, hidden: torch.Tensor, tokens: bool) -> torch.Tensor:
        """For each row whether it is skipped: [rows], bool. A row whose features are not finite passes."""
        features = features_of(hidden.cpu(), tokens)
        units = (features - self._mean) * self._scale
        if self._hidden is not None:
            units = torch.relu(units @ self._hidden.T + self._hidden_bias)
        probability = torch.sigmoid(units @ self._weight + self.told.bias)
        return (probability >= self.told.threshold) & features.isfinite().all(dim=1)


@dataclass(frozen=True, slots=True)
class Sifted:
    """Rows of one request after the filter: those that go on, which of these run only to be compared, and how many there are in all."""

    filter: LayerFilter
    rows: int
    asked: torch.Tensor  # indices of rows
    compared: torch.Tensor  # places in `asked`

    @property
    def skipped(self) -> int:
        """Rows that go no further."""
        return self.rows - len(self.asked)

    def whole(self, made: torch.Tensor | None) -> tuple[torch.Tensor, dict[str, int]]:
        """The output of all rows [rows, classes], and what is told of it; `made` [asked, classes]: the model's. SegmentError if that has
        another width than the filter's answer."""
        answer = self.filter.answer
        output = answer.repeat(self.rows, 1)
        agreed = 0
        if made is not None:
            if tuple(made.shape) != (len(self.asked), len(answer)):
                message = f"the model's output is {list(made.shape)}, the filter's answer has {len(answer)} values"
                raise SegmentError(INTERNAL, message)
            output[self.asked] = made
            agreed = int((made[self.compared].argmax(dim=1) == self.filter.told.useless).sum())
        return output, {"skipped": self.skipped, "compared": len(self.compared), "agreed": agreed}


class LayerFilters:
    """The filters in the model's folder, each read when it is first asked for, and again when its file has changed."""

    def __init__(self, folder: Path, layers: Stateless) -> None:
        """Nothing is read yet."""
        self._folder, self._layers = folder, layers
        self._read: dict[str, tuple[tuple[int, int], LayerFilter | str]] = {}

    def named(self, file: str) -> LayerFilter | str:
        """The filter, or why it is not used."""
        try:
            found = (self._folder / file).stat()
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
        state = (found.st_mtime_ns, found.st_size)
        known = self._read.get(file)
        if known is None or known[0] != state:
            known = self._read[file] = (state, self._made(file))
        return known[1]

    def _made(self, file: str) -> LayerFilter | str:
        try:
            told = read_filter((self._folder / file).read_bytes())
        except (OSError, FilterError) as error:
            return f"{file}: {error}"
        if not isinstance(told, InputFilter) or told.features.of is not Of.LAYERS:
            return f"{file} is no filter of mode Skip over layers"
        layers = self._layers
        if told.features.layers > min(layers.end, layers.count - 1):
            return f"{file} is over {told.features.layers} layers; this segment has {layers.end} of {layers.count}"
        with torch.inference_mode():
            example = layers.run_part(layers.example(), 0, told.features.layers)
            width = features_of(example.cpu(), layers.hidden > 0).shape[1]
        if width != told.features.inputs:
            return f"{file} takes {told.features.inputs} values a row, and {told.features.layers} layers give {width}"
        return LayerFilter(told)


def sifted(hidden: torch.Tensor, found: LayerFilter, sample: float, tokens: bool) -> Sifted:
    """Which rows go on; of those that are skipped, the share `sample` does all the same, by chance."""
    away = found.skips(hidden, tokens)
    drawn = away & (torch.rand(len(away)) < sample)
    asked = (~away | drawn).nonzero().flatten()
    return Sifted(found, len(away), asked, drawn[asked].nonzero().flatten())


def merging(sieve: Sifted, send: Send) -> Send:
    """`send` for the answer to the rows that went on: it gives the answer for all rows. What is no such answer is handed on as it is."""

    def whole(meta: bytes, data: bytes) -> None:
        try:
            fields, _ = answers.read(meta)
            (tensor,) = fields["tensors"]
            made = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape([int(size) for size in tensor["shape"]])
        except (ValueError, KeyError, TypeError):
            send(meta, data)
            return
        try:
            output, counts = sieve.whole(made)
            told = {**fields, "tensors": [{**tensor, "shape": list(output.shape)}], "filtered": counts}
            send(answers.with_body(meta, told), output.numpy().tobytes())
        except SegmentError as failure:
            send(answers.error(failure, ""), b"")

    return whole


def problem(why: str) -> Mapping[str, Any]:
    """What is told where the filter is not used."""
    return {"filtered": {"problem": why[:200]}}
