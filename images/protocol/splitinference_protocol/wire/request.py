"""A request of the wire as a value: its route, its tensor, what it begins with. Also what each may be at most."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from splitinference_protocol.wire.pooling import Pooling
from splitinference_protocol.wire.sampling import GREEDY, Sampling

ITEM_BYTES: Mapping[str, int] = {"int64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a value by dtype; a new dtype comes last, as its place is its number."""
INT8 = "int8"
ENCODINGS = ("none", INT8)
INT8_BLOCK = 64  # values that share a scale: few, because single channels of hidden states are a hundred times larger than others
MAX_NAME = 256
MAX_DIMENSIONS = 8
MAX_TARGETS = 1 << 17  # characters
MAX_DRAFTS = 64  # tokens of one step
MAX_ROUTE = 1024  # hops
MAX_HASHES = 1 << 16
DEFAULT_DEADLINE_MS = 60_000.0
MAX_DEADLINE_MS = 86_400_000.0
SEGMENT_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of Services are DNS labels that begin with a letter (RFC 1035)."""
ADAPTER_DIGEST = re.compile(r"[0-9a-f]{32}")
"""Names an adapter's content."""
MAX_ADAPTERS = 256
ADAPTER_PIECE = 64 << 10
"""Bytes of an adapter in one request: a segment takes so many whatever the width of its hidden states."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One further segment of the route: the name of its Service, and of the Triton model in it."""

    segment: str
    model: str

    @property
    def as_json(self) -> dict[str, str]:
        """The form in META."""
        return {"segment": self.segment, "model": self.model}


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What DATA holds: dtype and shape; the first dimension counts tokens. `encoding`: none, or how the values are packed (encoding.py)."""

    dtype: str
    shape: tuple[int, ...]
    encoding: str = "none"

    @property
    def tokens(self) -> int:
        """How many tokens the tensor carries."""
        return self.shape[0]

    @property
    def byte_size(self) -> int:
        """Bytes that DATA must have."""
        if self.encoding == INT8:
            *rows, hidden = self.shape
            return math.prod(rows) * -(-hidden // INT8_BLOCK) * (INT8_BLOCK + 4)
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a sequence begins with: one name for each whole block of `block` tokens, which stands for it and for all before it."""

    block: int
    hashes: tuple[str, ...]

    def shares(self, other: "Prefix", tokens: int) -> bool:
        """Both begin with the same `tokens`, a whole number of blocks."""
        number = tokens // self.block
        same = self.block == other.block and 0 < number <= min(len(self.hashes), len(other.hashes))
        return same and self.hashes[number - 1] == other.hashes[number - 1]


@dataclass(frozen=True, slots=True)
class AdapterPiece:
    """What DATA of `adapter_load` is of the segment's part of an adapter: the bytes from `offset` on, of so many, and their SHA-256."""

    offset: int
    total: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request's META. `tensor` is set for `step` and `infer`; `deadline_ms` is what is left when the request arrives.

    `logits`: a step that samples gives the logits of its last position instead of a token.
    """

    op: str
    sequence: str = ""
    position: int = 0
    tensor: TensorMeta | None = None
    route: tuple[Hop, ...] = ()
    sample: bool = False
    logits: bool = False
    sampling: Sampling = GREEDY
    targets: str = ""  # the tokens that follow the step's, whose log-probabilities are asked for, packed (leb128.py)
    # The step's last tokens are drafts: supposed, and kept as far as they are what is sampled. `drop`: so many tokens that are held behind
    # `position` were drafts of the step before, and wrong.
    drafts: tuple[int, ...] = ()
    drop: int = 0
    deadline_ms: float = DEFAULT_DEADLINE_MS
    traceparent: str = ""  # W3C trace context of the step, handed on as it came; empty: not traced
    # Of `kv_pull` and `kv_export` alone: how many tokens from `position` on, who has them, and which of the model's blocks.
    tokens: int = 0
    sources: tuple[Hop, ...] = ()
    blocks: tuple[int, int] = (0, 0)
    # Of `record` and `recorded` alone: what the segment received or what it sent; `last`: nothing more is recorded.
    side: str = ""
    last: bool = False
    # Of a sequence's first step and of `release`: whose KV it may begin with, and what of its own may be kept for others.
    prefix: Prefix | None = None
    # Of `infer` alone: which outputs are wanted, all of the model's own where none is named; and how `sentence_embedding` is made.
    outputs: tuple[str, ...] = ()
    pooling: Pooling | None = None
    # Of a step: the digest of the adapter that its rows run with; empty: none. Of `adapter_load`: which adapter DATA is a piece of.
    adapter: str = ""
    piece: AdapterPiece | None = None
    # Of `adapters` alone: digests of those that are still needed; None: nothing is dropped.
    keep: tuple[str, ...] | None = None
    # As it came, where it came with a head: what is handed on.
    body: bytes = b""
    done: int = 0
