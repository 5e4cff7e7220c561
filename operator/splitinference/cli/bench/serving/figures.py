"""What `bench serve` makes of its measurements: percentiles for each setup, and ratios between setups. Pure."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ECHO_BYTES = 16 * 1024
_STAGE_PARTS = {"compute": "computeMs", "queue": "queueMs", "links": "linkMs"}


class Strict(BaseModel):
    """A frozen part of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Measured(Strict):
    """One request's times, in milliseconds, and what it said."""

    first_ms: float
    gaps_ms: tuple[float, ...]
    ms: float
    tokens: int
    text: str


class Round(Strict):
    """Requests that ran at once, and how long all of them took together."""

    ms: float
    requests: tuple[Measured, ...]

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests by the time from the first request to the last token."""
        return sum(request.tokens for request in self.requests) / self.ms * 1e3


class Percentiles(Strict):
    """Nearest-rank percentiles, in milliseconds."""

    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Percentiles":
        """Of at least one value."""
        ordered = sorted(values)

        def at(share: float) -> float:
            return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)], 3)

        return cls(p50=at(0.5), p90=at(0.9), p99=at(0.99))


class Setup(Strict):
    """One setup under one load: `unsplit` (transformers' generate in process), `segments-N` (engine torch) and `llamacpp-segments-N`
    through the gateway, `llama.cpp` (its own server), `llama.cpp-rpc-N` (over N RPC servers), or a server that `--server` names."""

    name: str
    segments: int = Field(description="0: not in segments of ours")
    clients: int
    prompt_tokens: int
    tokens_per_second: float = Field(description="median over the rounds; all clients together, prefill included")
    ttft_ms: Percentiles
    tpot_ms: Percentiles | None = Field(description="gaps between tokens; null where one token was asked for")
    same_text_as_unsplit: bool | None = Field(
        description="as the unsplit model of the same engine: transformers, or llama.cpp's server; null: that one is not in this run"
    )


class Ratios(Strict):
    """The figures by which a split model is judged; medians over rounds, each ratio within one round. Null: not measured in this run."""

    three_segments_one_client: float | None = Field(description="tokens/s, three segments by unsplit; at least 0.9 is wanted")
    three_by_one_segment: float | None = Field(description="tokens/s with one client, three segments by one")
    eight_clients_per_core: float | None = Field(
        description="tokens/s of three segments with eight clients, by one segment with one client and by the cores used; at least 0.9"
    )
    prefill_1000: float | None = Field(description="time to first token, three segments by (unsplit + transfer); at most 1.1 is wanted")
    echo_hop_ms: float | None = Field(description="one hop of 16 KiB through a stage without layers; at most 0.4 is wanted")


def setup(name: str, segments: int, prompt_tokens: int, rounds: Sequence[Round], expected: Sequence[str] | None) -> Setup:
    """One setup's figures. `expected`: the unsplit model's text for each request of a round, if it is known."""
    requests = [request for each in rounds for request in each.requests]
    gaps = [gap for request in requests for gap in request.gaps_ms]
    return Setup(
        name=name,
        segments=segments,
        clients=len(rounds[0].requests),
        prompt_tokens=prompt_tokens,
        tokens_per_second=round(median(each.tokens_per_second for each in rounds), 2),
        ttft_ms=Percentiles.of([request.first_ms for request in requests]),
        tpot_ms=Percentiles.of(gaps) if gaps else None,
        same_text_as_unsplit=(
            None if expected is None else all([request.text for request in each.requests] == list(expected) for each in rounds)
        ),
    )


def token_parts(gap_ms: float, observed: Mapping[str, Any]) -> dict[str, float]:
    """Parts of the median time between two tokens, of what a gateway says of its stages."""
    stages = observed["stages"].values()
    parts = {part: sum(float(stage[key]) for stage in stages) for part, key in _STAGE_PARTS.items()}
    parts["ingress"] = float(observed.get("ingressMs", 0.0))
    return {name: round(value, 3) for name, value in (*parts.items(), ("rest", gap_ms - sum(parts.values())), ("all", gap_ms))}


def speed_ratio(rounds: Sequence[Round], by: Sequence[Round]) -> float:
    """Median over rounds of tokens/s by tokens/s of the same round: what disturbs a round disturbs both."""
    return round(median(one.tokens_per_second / other.tokens_per_second for one, other in zip(rounds, by, strict=True)), 3)


def per_core(eight: Sequence[Round], one: Sequence[Round], cores: int) -> float:
    """Tokens/s of many clients by tokens/s of one segment with one client and by cores."""
    return round(speed_ratio(eight, one) / cores, 3)


def prefill_ratio(split: Sequence[Round], unsplit: Sequence[Round], transfer_ms: float) -> float:
    """Time to first token of the split model by that of the unsplit one and the transfer between its segments."""
    pairs = zip(split, unsplit, strict=True)
    return round(median(a.requests[0].first_ms / (b.requests[0].first_ms + transfer_ms) for a, b in pairs), 3)


def wait_ratio(split: Sequence[Round], other: Sequence[Round]) -> float:
    """Time to first token by that of the other in the same round, median over rounds."""
    return round(median(a.requests[0].first_ms / b.requests[0].first_ms for a, b in zip(split, other, strict=True)), 3)


def cuts_with_blocks(layer_bytes: Sequence[float], segments: int) -> tuple[int, ...]:
    """The same as `cuts`, with a block in each segment: the embedding goes with the first block, the head with the last."""
    blocks = list(layer_bytes[1:-1])
    blocks[0] += layer_bytes[0]
    blocks[-1] += layer_bytes[-1]
    found = cuts(blocks, segments)
    return (0, *(cut + 1 for cut in found[1:-1]), len(layer_bytes))


def cuts(layer_bytes: Sequence[float], segments: int) -> tuple[int, ...]:
    """Boundaries of `segments` runs of layers, as even in bytes as runs of whole layers can be without looking back."""
    total, seen, found = sum(layer_bytes), 0.0, [0]
    for layer, size in enumerate(layer_bytes):
        left = len(layer_bytes) - layer
        if (
            len(found) < segments
            and layer > found[-1]
            and (seen + size / 2 > total * len(found) / segments or left <= segments - len(found))
        ):
            found.append(layer)
        seen += size
    return (*found, len(layer_bytes))
