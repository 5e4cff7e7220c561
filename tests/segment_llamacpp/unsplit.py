"""The unsplit model on libllama: the model's own file, all of it, with the calls that llama.cpp's programs use."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from splitinference_segment.llamacpp.library import Model
from splitinference_segment.llamacpp.slices import Piece, open_model


class Unsplit:
    """Sequences by number. Rows run in the parts that the caller chooses."""

    def __init__(self, path: Path, *, cells: int = 2048, threads: int = 1) -> None:
        file = open_model(path).model.files[0]
        whole = Piece(0, path.stat().st_size, place=_At(file, 0))  # type: ignore[arg-type]
        self.model = Model(path.parent, [whole], cells=cells, sequences=8, rows=512, outputs=64, threads=threads, boundary=False)

    def step(self, rows: Sequence[tuple[int, int, int]]) -> np.ndarray:
        """Rows of (token, position, sequence); logits behind each, float32 [rows, vocabulary]."""
        tokens, positions, sequences = (np.array(column, np.int32) for column in zip(*rows, strict=True))
        wanted = np.ones(len(rows), np.int8)
        self.model.decode(len(rows), tokens=tokens, hidden=None, positions=positions, sequences=sequences, wanted=wanted, out=None)
        return np.stack([self.model.logits(row) for row in range(len(rows))])

    def last(self, tokens: Sequence[int], position: int, sequence: int = 0) -> np.ndarray:
        """Logits behind the last of a sequence's tokens; only that row is asked for, as in a server."""
        count = len(tokens)
        wanted = np.zeros(count, np.int8)
        wanted[-1] = 1
        ids, positions = np.array(tokens, np.int32), np.arange(position, position + count, dtype=np.int32)
        self.model.decode(
            count, tokens=ids, hidden=None, positions=positions, sequences=np.full(count, sequence, np.int32), wanted=wanted, out=None
        )
        return self.model.logits(count - 1)


def same(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal in every bit, and neither broken nor flat."""
    assert np.isfinite(expected).all()
    assert float(expected.std()) > 0.1
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() == 0, "numpy.testing is not in the image"


class _At:
    def __init__(self, file: str, offset: int) -> None:
        self.file, self.offset = file, offset
