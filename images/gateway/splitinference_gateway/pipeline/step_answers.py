"""Answers of segments to steps as values, read and checked; and what failed where there is none."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.errors import INTERNAL, NEXT_HOP_FAILED
from splitinference_protocol.wire.pooling import Pooling

_log = logging.getLogger(__name__)

TRANSPORT = "transport"


STALLED = "stalled"


SAID_BY_US = {
    INTERNAL: "the segment failed",
    TRANSPORT: "the segment cannot be reached",
    NEXT_HOP_FAILED: "the segment after it cannot be reached",
}
"""What a client may read of these: what is behind them names hosts, files and exceptions, and is for the log."""


@dataclass(frozen=True)
class Output:
    """One tensor of an answer: float32, little-endian."""

    name: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Wanted:
    """Outputs of `infer` by name, all of the model's own where none is named; and how `sentence_embedding` is made, if it is among them."""

    outputs: tuple[str, ...] = ()
    pooling: Pooling | None = None


EVERYTHING = Wanted()


@dataclass(frozen=True)
class Scored:
    """What the model says of one token that was given."""

    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Drafted:
    """A token whose draft was right, with what the model says of it."""

    token: int
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Answer:
    """A step's result. `token` is None where no sampling was asked for; `outputs` are there where tensors were asked for."""

    token: int | None
    logprob: float | None
    top_logprobs: tuple[tuple[int, float], ...]
    timings: tuple[Timing, ...]
    seconds: float
    outputs: tuple[Output, ...] = ()
    revision: str = ""  # of the plan whose route was taken
    scored: tuple["Scored | None", ...] = ()  # of given tokens, where they were asked for
    more: tuple["Drafted", ...] = ()  # the tokens after `token`, where drafts of them were right
    of: int = 1  # tokens that the step gave; 0: this one came with the one before
    resumed: str = ""  # how the sequence was brought onto that route since the token before: one of chain.RESUMED; empty: it was there


@dataclass(frozen=True)
class Pulled:
    """What a segment's pull of KV moved, and how long it took."""

    bytes: int
    seconds: float


Hidden = tuple[str, Sequence[int], bytes]
"""Data type, shape [tokens, hidden] and bytes of hidden states; or of token ids, [tokens]."""


@dataclass(frozen=True)
class Compared:
    """How far a segment's output is from a verifier's: relative errors of tokens from `position` on."""

    tokens: int
    position: int
    mean: float
    worst: float
    worst_at: int


@dataclass(eq=False)
class StepError(Exception):
    """A step that gave no result. `code` is the protocol's, or `transport` (no connection) or `stalled` (no answer in time).

    `segment` is who said so; for `transport` and `stalled` the first segment, which was called.
    """

    code: str
    message: str
    segment: str

    def __str__(self) -> str:
        return f"{self.code} from {self.segment}: {self.message}"


@dataclass(slots=True)
class Told:
    """An answer that is no error: META's fields, what each stage took, and DATA."""

    fields: dict[str, Any]
    timings: tuple[Timing, ...]
    data: bytes


def failed_step(code: str, message: str, segment: str) -> StepError:
    """The failure as a client may read it; its own words go to the log where a client has nothing from them."""
    said = SAID_BY_US.get(code)
    if said is None:
        return StepError(code, message, segment)
    _log.info("%s: %s: %s", segment, code, message)
    return StepError(code, said, segment)


def finite(logprob: float) -> float:
    """A log-probability that JSON can carry: OpenAI writes -9999 for what is impossible. ValueError for what is no number."""
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError(f"a log-probability of {logprob}")
    return max(logprob, -9999.0)


def outputs_of(meta: Mapping[str, Any], content: bytes, first: str) -> tuple[Output, ...]:
    made, start = [], 0
    try:
        for tensor in meta["tensors"]:
            if tensor["dtype"] != "float32":
                raise ValueError(f"a tensor of {tensor['dtype']}")
            shape = tuple(int(size) for size in tensor["shape"])
            end = start + 4 * math.prod(shape)
            made.append(Output(str(tensor["name"]), shape, content[start:end]))
            start = end
        if not made or start != len(content):
            raise ValueError(f"{len(content)} bytes for tensors of {start}")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the answer's tensors make no sense: {error!r}", first) from error
    return tuple(made)


def top_of(said: Any) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), finite(float(logprob))) for token, logprob in said or ())


def scored_of(meta: Mapping[str, Any], number: int, last: str) -> tuple[Scored, ...]:
    try:
        made = tuple(Scored(finite(float(logprob)), top_of(top)) for logprob, top in meta["scored"])
        if len(made) != number:
            raise ValueError(f"{len(made)} log-probabilities for {number} tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the log-probabilities make no sense: {error!r}", last) from error
    return made


def drafted_of(meta: Mapping[str, Any], answer: Answer, drafts: Sequence[int], last: str) -> tuple[Drafted, ...]:
    """The tokens after the first one. An answer without the field is one of a segment that took drafts for tokens of the text."""
    try:
        made = tuple(Drafted(int(token), finite(float(logprob)), top_of(top)) for token, logprob, top in meta["more"])
        if [answer.token, *(each.token for each in made)][: len(made)] != list(drafts[: len(made)]) or len(made) > len(drafts):
            raise ValueError(f"{len(made)} tokens after drafts that were not right")
        if any(each.token < 0 for each in made):
            raise ValueError("a token id below 0")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the answer to drafts makes no sense: {error!r}", last) from error
    return made


def answer_of(
    told: Told, first: str, seconds: float, *, sampled: bool, outputs: tuple[Output, ...] = (), scored: tuple[Scored, ...] = ()
) -> Answer:
    fields = told.fields
    try:
        token = int(fields["token"]) if sampled else None
        if token is not None and token < 0:
            raise ValueError(f"token id {token}")
        logprob = fields.get("logprob")
        top = top_of(fields.get("top_logprobs"))
        return Answer(token, None if logprob is None else finite(float(logprob)), top, told.timings, seconds, outputs, scored=scored)
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the answer makes no sense: {error!r}", first) from error
