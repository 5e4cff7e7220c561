"""A sequence's rows in a batch of a step, and where its keys and values go."""

from dataclasses import dataclass, field

import torch

from splitinference_segment.cache.kv import KvEntry


@dataclass(slots=True)
class Span:
    """One sequence's tokens in the row [start, start + tokens), at `position` of its own sequence, with its KV."""

    entry: KvEntry
    start: int
    tokens: int
    position: int
    _masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, times: int, device: torch.device) -> torch.Tensor:
        """Which keys each token may see, [times × tokens, position + tokens]: its past, itself, and no further back than the window."""
        if (window, times) not in self._masks:
            total = self.position + self.tokens
            query = torch.arange(self.position, total, device=device)[:, None]
            key = torch.arange(total, device=device)[None, :]
            seen = key <= query
            self._masks[window, times] = (seen if window is None else seen & (key > query - window)).repeat(times, 1)
        return self._masks[window, times]
