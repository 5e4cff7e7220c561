"""KV of the torch engine: one buffer per sequence, [2, blocks, heads, tokens, width]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from splitinference_segment.cache.kv import KvPiece


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one token of one sequence needs here: blocks, key/value heads, their width."""

    blocks: int
    heads: int
    width: int
    dtype: torch.dtype
    device: str = "cpu"

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of one token in all blocks of this segment."""
        return 2 * self.blocks * self.heads * self.width * int(self.dtype.itemsize)

    @property
    def most_sequences(self) -> int | None:
        """Any number."""
        return None

    def allocate(self, tokens: int) -> torch.Tensor:
        """A buffer [2, blocks, heads, tokens, width], not initialised: what is beyond the length is never read."""
        return torch.empty((2, self.blocks, self.heads, tokens, self.width), dtype=self.dtype, device=self.device)

    def capacity(self, buffer: torch.Tensor) -> int:
        """Tokens that the buffer can hold."""
        return int(buffer.shape[3])

    def grown(self, buffer: torch.Tensor, tokens: int, length: int) -> torch.Tensor:
        """A larger buffer with the first `length` tokens of this one, which stays as it is for those who read it."""
        larger = self.allocate(tokens)
        if length:
            self.copy(buffer, larger, length)
        return larger

    def copy(self, source: torch.Tensor, target: torch.Tensor, tokens: int) -> None:
        """The first `tokens` of one buffer into another."""
        target[:, :, :, :tokens].copy_(source[:, :, :, :tokens])

    def trimmed(self, buffer: torch.Tensor, tokens: int) -> torch.Tensor:
        """A buffer with the first `tokens` alone."""
        return buffer[:, :, :, :tokens].clone() if buffer.shape[3] > tokens else buffer

    def layout(self, blocks: int, tokens: int) -> dict[str, Any]:
        """The form in which so many tokens of so many blocks are handed over, as META says it."""
        return {"dtype": str(self.dtype).removeprefix("torch."), "shape": [2, blocks, self.heads, tokens, self.width]}

    def exported(self, buffer: torch.Tensor, blocks: range, tokens: range) -> bytes:
        """These tokens of these of the segment's blocks, in that form."""
        view = buffer[:, blocks.start : blocks.stop, :, tokens.start : tokens.stop]
        form: bytes = view.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return form

    def taken(self, buffer: torch.Tensor, tokens: range, pieces: Sequence[KvPiece]) -> None:
        """Write tokens that others exported; together the pieces have every block."""
        for piece in pieces:
            sizes = (2, len(piece.blocks), self.heads, len(tokens), self.width)
            values = torch.frombuffer(bytearray(piece.data), dtype=self.dtype).reshape(sizes)
            buffer[:, piece.blocks.start : piece.blocks.stop, :, tokens.start : tokens.stop].copy_(values)
