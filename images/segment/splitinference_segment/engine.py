"""What a segment asks of its engine: to load layers, to run rows of several sequences, to hold their KV, and to read and write arrays.

Queue, batching, wire, hand-over, probes and metrics are the same for all engines. They treat an engine's arrays as rows: they know how many
there are and cut them, and leave the rest to the engine. Engines: torch (torch_engine.py) and llama.cpp (llamacpp/).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from splitinference_protocol.wire.request import Request, TensorMeta
from splitinference_segment.cache.kv import KvEntry, KvStore
from splitinference_segment.choices import Choice
from splitinference_segment.verdicts import Verdict

Values = Any
"""An engine's own array: token ids [tokens], or hidden states [tokens, hidden]. `len`, slices of rows, `shape`, `nbytes`, `min` and `max`
work on any."""


class Arrays(Protocol):
    """Arrays of one kind: how they come from bytes, and go."""

    def received(self, tensor: TensorMeta, data: memoryview) -> Values:
        """The bytes as the tensor that they are said to be. SegmentError `bad_request` when there are not so many."""

    def data(self, values: Values, encoding: str) -> bytes:
        """Hidden states as they are sent on, in the wire's data type or encoded."""

    def float32(self, values: Values) -> bytes:
        """Any array as float32, little-endian."""

    def name(self, values: Values) -> str:
        """The wire's name of the data type."""

    def kept(self, values: Values) -> Values:
        """A copy that stays when the step's memory is used again."""

    def joined(self, parts: Sequence[Values]) -> Values:
        """Rows one after the other; of no part, an array without rows."""

    def finite(self, values: Values) -> bool:
        """Whether every value is a number."""

    def verdict(self, expected: Values, received: Values, position: int) -> Verdict:
        """How far apart two outputs of the tokens from `position` on are."""


@dataclass(frozen=True, slots=True)
class Work:
    """One sequence's rows in a batch: `values` of `tokens` tokens at `request.position`, and where its KV is."""

    request: Request
    values: Values
    entry: KvEntry
    adapter: Any = None  # as the engine holds it; None: the model's own weights alone

    @property
    def tokens(self) -> int:
        """How many rows."""
        return int(self.values.shape[0])


@dataclass(frozen=True, slots=True)
class Output:
    """What the layers made of one `Work`: hidden states for the next segment, or from the last one what it was asked for."""

    hidden: Values | None = None
    choice: Choice | None = None
    more: Sequence[Choice] = ()  # of a step with drafts: the tokens after `choice`, one for each draft that was right
    logits: Values | None = None  # of the last position, float32
    scored: Sequence[Choice] = ()  # of the tokens that follow the step's, where these were given


class Adapters(Protocol):
    """The adapters that an engine holds, by digest. Called by threads of connections, beside steps that run."""

    @property
    def budget(self) -> int:
        """Bytes that they may have together."""

    def held(self) -> Mapping[str, int]:
        """Bytes of each."""

    def get(self, digest: str) -> Any:
        """The adapter, for `Work`; None where it is not held. It stays usable for who has it after it was dropped."""

    def load(self, digest: str, content: bytes) -> None:
        """Take the part of an adapter for these layers, a safetensors file. SegmentError `bad_request`: it does not fit these layers."""

    def drop(self, digest: str) -> None:
        """Forget one."""


class Engine(Protocol):
    """Layers [start, end) of a decoder, loaded: the embedding is layer 0, the blocks 1..N, norm and head layer N + 1."""

    start: int
    end: int
    count: int
    vocabulary: int
    hidden: int
    first_block: int
    is_first: bool
    is_last: bool

    @property
    def adapters(self) -> Adapters | None:
        """Those that it holds; None where it can hold none."""

    @property
    def arrays(self) -> Arrays:
        """How its arrays come from bytes, and go."""

    @property
    def kv_shape(self) -> KvStore:
        """Where sequences' keys and values are, and in which form they are handed over."""

    def description(self) -> str:
        """What was loaded, for the log."""

    def example(self) -> Values:
        """One row that these layers take, for a probe."""

    def use_threads(self, threads: int) -> None:
        """Compute with so many. Called once, on the thread that computes."""

    def run(self, batch: Sequence[Work]) -> list[Output]:
        """Run the layers on rows of several sequences, in this order, each against its own past. Called by one thread alone."""
