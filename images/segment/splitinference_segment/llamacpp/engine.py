"""Layers of a GGUF model on libllama, as the segment's engine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from splitinference_modelfiles.gguf_files.gguf import GGUF_TYPES
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_protocol.wire import leb128
from splitinference_segment import drafting
from splitinference_segment.choices import Choice
from splitinference_segment.engine import Adapters, Output, Work
from splitinference_segment.llamacpp.architectures import windows_of
from splitinference_segment.llamacpp.arrays import NumpyArrays, rounded
from splitinference_segment.llamacpp.kv import MOST_SLOTS, SPARE, CellShape, CellStore
from splitinference_segment.llamacpp.library import Model, dequantized, version
from splitinference_segment.llamacpp.sampling import chosen, sample
from splitinference_segment.llamacpp.sizes import sizes_of
from splitinference_segment.llamacpp.slices import Slice, Source, Tensor, cut, open_model
from splitinference_segment.settings import Settings

BATCH_ROWS = 512
"""Rows that libllama computes at once; longer steps are run in parts of so many, as llama.cpp's own server does."""
MOST_OUTPUTS = 32
"""Rows of one part that give logits, each as wide as the vocabulary."""
KV_BYTES = 2
_NUMBERS = {name: number for number, (name, _, _) in GGUF_TYPES.items()}


@dataclass(slots=True)
class _Rows:
    """All rows of a batch, one after the other."""

    values: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    wanted: np.ndarray

    def parts(self) -> Iterator[slice]:
        """Runs that libllama computes at once."""
        start, total = 0, len(self.positions)
        if total <= MOST_OUTPUTS:  # as most steps are
            yield slice(0, total)
            return
        outputs = np.cumsum(self.wanted, dtype=np.int64)
        while start < total:
            before = int(outputs[start - 1]) if start else 0
            stop = min(start + BATCH_ROWS, int(np.searchsorted(outputs, before + MOST_OUTPUTS, side="right")))
            yield slice(start, min(stop, total))
            start = min(stop, total)


class LlamaEngine:
    """Layers [start, end) of a GGUF model. One thread runs batches; others hand KV over meanwhile, between parts of a batch."""

    def __init__(self, settings: Settings) -> None:
        """Load them. ModelRefusedError or LlamaError say why not."""
        if settings.model_digest:
            raise ModelRefusedError("SI_MODEL_DIGEST is set, and the llama.cpp engine does not check digests: it would load anything")
        source = open_model(settings.model_path)
        part = cut(source, settings.start, settings.end)
        self.start, self.end, self.count = part.start, part.end, part.count
        self.vocabulary, self.hidden, self.first_block = part.vocabulary, part.hidden, part.blocks.start
        self.adapters: Adapters | None = None
        self.is_first, self.is_last = part.start == 0, part.end == part.count
        self.arrays = NumpyArrays(settings.dtype)
        self._dtype, self._part = settings.dtype, part
        self._embedding = _embedding(source.folder, part.embedding) if part.embedding is not None else None
        shape = cell_shape(source, part)
        slots = settings.max_sequences + min(settings.max_sequences, 16) + SPARE + 1
        if slots > MOST_SLOTS:
            raise ModelRefusedError(
                f"SI_MAX_SEQUENCES is {settings.max_sequences}, expected at most {MOST_SLOTS - 16 - SPARE - 1} with llama.cpp"
            )
        most = settings.kv_bytes // shape.bytes_per_token
        cells = min(most, (settings.max_sequences + 1) * settings.max_context_tokens) + SPARE
        self._model = Model(
            source.folder, list(part.pieces()), cells=cells, sequences=slots, rows=min(BATCH_ROWS, max(settings.max_context_tokens, slots)),
            outputs=max(MOST_OUTPUTS, slots) if self.is_last else 0, threads=settings.threads, boundary=not self.is_last,
        )  # fmt: skip
        self.kv_shape = CellStore(self._model, shape, slots)

    def description(self) -> str:
        """Size and versions."""
        extra = self._embedding.nbytes if self._embedding is not None else 0
        weights = f"{(self._model.weight_bytes + extra) / 2**20:.1f} MiB of weights"
        return f"{weights}, {self.kv_shape.bytes_per_token} KV bytes per token, llama.cpp {version()}"

    def example(self) -> np.ndarray:
        """A token, or a hidden state of ones."""
        return np.ones(1, np.int64) if self.is_first else np.ones((1, self.hidden), np.float32)

    def use_threads(self, threads: int) -> None:
        """The context was made with them."""

    def close(self) -> None:
        """Free everything. No step may run or come."""
        self._model.close()

    def run(self, batch: Sequence[Work]) -> list[Output]:
        """Run the rows in parts. The last segment samples and scores."""
        rows = self._rows(batch)
        gave: dict[int, np.ndarray] = {}
        out = None if self.is_last else np.empty((len(rows.positions), self.hidden), np.float32)
        self._prepare(batch)
        for part in rows.parts():
            self._decode(rows, part, out)
            if self.is_last:
                for row in np.flatnonzero(rows.wanted[part]):
                    gave[part.start + int(row)] = self._model.logits(int(row))
        ends = list(accumulate(work.tokens for work in batch))
        if out is not None:
            out = rounded(out, self._dtype)
            return [Output(out[end - work.tokens : end]) for work, end in zip(batch, ends, strict=True)]
        return [self._output(work, end, gave) for work, end in zip(batch, ends, strict=True)]

    def _rows(self, batch: Sequence[Work]) -> _Rows:
        values = _joined([work.values for work in batch])
        if self._embedding is not None:
            values = self._looked_up(values)
        elif self.is_first:
            values = values.astype(np.int32)
        elif self._part.input_scale != 1.0:
            values = values * np.float32(self._part.input_scale)
        positions = _joined([np.arange(w.request.position, w.request.position + w.tokens, dtype=np.int32) for w in batch])
        slots = _joined([np.full(work.tokens, work.entry.buffer.slot, np.int32) for work in batch])
        wanted = _joined([self._wanted(work) for work in batch])
        return _Rows(np.ascontiguousarray(values), positions, slots, wanted)

    def _wanted(self, work: Work) -> np.ndarray:
        """int8 [tokens]: which rows' logits are needed. Inner segments give all rows, and count none as an output."""
        made = np.zeros(work.tokens, np.int8)
        if self.is_last:
            made[: len(leb128.numbers(work.request.targets)) if work.request.targets else 0] = 1
            if work.request.sample:
                sampled = drafting.rows(work.request, work.tokens)
                made[sampled.start : sampled.stop] = 1
        return made

    def _looked_up(self, ids: np.ndarray) -> np.ndarray:
        """The embeddings of tokens, float32 [tokens, hidden], as the first block takes them."""
        if self._embedding is None or self._part.embedding is None:
            raise TypeError("only a first segment has an embedding of its own")
        rows = dequantized(self._embedding[ids], _NUMBERS[self._part.embedding.info.dtype], len(ids) * self.hidden)
        scale = np.float32(self._part.embedding_scale)
        return (rows if scale == 1 else rows * scale).reshape(len(ids), self.hidden)

    def _prepare(self, batch: Sequence[Work]) -> None:
        with self.kv_shape.lock:
            self.kv_shape.settle()
            for work in batch:
                self.kv_shape.hold(work.entry.buffer, work.request.position)

    def _decode(self, rows: _Rows, part: slice, out: np.ndarray | None) -> None:
        count = part.stop - part.start
        ids = rows.values.ndim == 1
        wanted = rows.wanted[part] if out is None else np.ones(count, np.int8)
        with self.kv_shape.lock:
            self._model.decode(
                count, tokens=rows.values[part] if ids else None, hidden=None if ids else rows.values[part],
                positions=rows.positions[part], sequences=rows.slots[part], wanted=wanted, out=None if out is None else out[part],
            )  # fmt: skip

    def _output(self, work: Work, end: int, gave: dict[int, np.ndarray]) -> Output:
        request, start = work.request, end - work.tokens
        scores: list[Choice] = []
        if request.targets:
            for i, target in enumerate(leb128.numbers(request.targets)):
                scores.append(chosen(gave[start + i], target, request.sampling.logprobs))
        if not request.sample:
            return Output(scored=scores)
        if request.logits:
            return Output(logits=gave[end - 1], scored=scores)
        found = drafting.accepted(request, work.tokens, lambda row, sampling, position: sample(gave[start + row], sampling, position))
        return Output(choice=found[0], more=found[1:], scored=scores)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One after the other; a single one as it is."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _embedding(folder: Path, tensor: Tensor) -> np.ndarray:
    """The matrix as it is stored, uint8 [vocabulary, bytes of a row]; a copy, so that serving never waits for the page cache."""
    if tensor.place is None:
        raise ModelRefusedError("the first segment's file has no embedding")
    data = np.fromfile(folder / tensor.place.file, np.uint8, tensor.info.bytes, offset=tensor.place.offset)
    if len(data) != tensor.info.bytes:
        raise ModelRefusedError(f"{tensor.place.file} is cut short inside token_embd.weight")
    return data.reshape(tensor.info.shape[0], -1)


def cell_shape(source: Source, part: Slice) -> CellShape:
    """KV of the slice's blocks. ModelRefusedError where blocks differ in it, or tensors from the metadata."""
    metadata = source.model.metadata
    sizes = sizes_of(metadata, source.model.tensors, part.hidden)
    keys, values = (KV_BYTES * sizes.groups * width for width in (sizes.key, sizes.value))
    offset = max(source.layers.start, 1) - 1
    local = range(part.blocks.start - offset, part.blocks.stop - offset)
    windows = windows_of(source.architecture, metadata, local, source.own_blocks)
    return CellShape(len(part.blocks), keys, values, *((windows.blocks, windows.tokens) if windows is not None else ()))
