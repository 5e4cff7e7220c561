"""Prefix reuse: which beginnings of prompts the segments of a pipeline are believed to hold, so that a new sequence can start behind them.

A prompt is cut into blocks of 64 tokens. Each block's name is an HMAC of all tokens up to its end and of who asks, by a key that only
the gateways of this resource hold: nobody else can name a block, whatever they know of a client and its prompts. A client only ever
meets the KV of its own earlier requests, unless sharing between all is switched on, because how quickly an answer begins tells whether
someone asked the same before. The segments decide: one that no longer holds a beginning says `kv_missing`, and the sequence runs whole.
"""

import array
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from splitinference_gateway.pipeline.transport.wire_tls import PrefixKey
from splitinference_protocol.route import Pipeline
from splitinference_protocol.wire.request import Prefix

BLOCK = 64
MISSED = "prefix_missing"
_MOST_KNOWN = 8192  # block names over all pipelines
Reuse = Literal["client", "all", "off"]


def block_names(tokens: Sequence[int], salt: str, key: bytes) -> tuple[str, ...]:
    """One name, 128 bits in hexadecimal, for each whole block: of the salt, the block, and all tokens before it."""
    before = hmac.digest(key, b"prefix of client " + salt.encode("utf-8", "surrogatepass"), "sha256")
    names = []
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        before = hmac.digest(key, before + array.array("q", tokens[start : start + BLOCK]).tobytes(), "sha256")
        names.append(before[:16].hex())
    return tuple(names)


def named(names: Sequence[str]) -> Prefix | None:
    """The protocol's form; None where there is no whole block."""
    return Prefix(BLOCK, tuple(names)) if names else None


@dataclass
class Prefixes:
    """What the gateway remembers of beginnings, by pipeline; least recently used ones are forgotten."""

    reuse: Reuse = "client"
    key: Callable[[], bytes] = field(default_factory=PrefixKey)
    _known: OrderedDict[tuple[tuple[str, ...], str], None] = field(default_factory=OrderedDict)

    def names(self, tokens: Sequence[int], client: str, adapter: str = "") -> tuple[str, ...]:
        """Names of the whole blocks; none where reuse is off. With another adapter (its digest) the same tokens have another KV."""
        if self.reuse == "off":
            return ()
        salt = f"one:{client}" if self.reuse == "client" else "all"
        return block_names(tokens, f"adapter {adapter} {salt}" if adapter else salt, self.key())

    def held(self, pipeline: Pipeline, names: Sequence[str], tokens: int) -> int:
        """How many of a prompt's `tokens` the pipeline is believed to hold: whole blocks, and never all, as the last token has to run."""
        for blocks in range(min(len(names), (tokens - 1) // BLOCK), 0, -1):
            key = (_segments(pipeline), names[blocks - 1])
            if key in self._known:
                self._known.move_to_end(key)
                return blocks * BLOCK
        return 0

    def learned(self, pipeline: Pipeline, names: Sequence[str], tokens: int) -> None:
        """The pipeline holds the first `tokens` of what these names stand for."""
        for name in names[: tokens // BLOCK]:
            self._known[_segments(pipeline), name] = None
            self._known.move_to_end((_segments(pipeline), name))
        while len(self._known) > _MOST_KNOWN:
            self._known.popitem(last=False)

    def missed(self, pipeline: Pipeline, names: Sequence[str]) -> None:
        """A segment of it held less than was believed."""
        for name in names:
            self._known.pop((_segments(pipeline), name), None)


def _segments(pipeline: Pipeline) -> tuple[str, ...]:
    return tuple(hop.segment for hop in pipeline)
