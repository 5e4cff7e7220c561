"""One step through the chain, as the gateway asks for it of a pipeline's first segment."""

import array
import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitinference_gateway import request_ids, tracing
from splitinference_gateway.pipeline.connections import Connections, NoAnswerError
from splitinference_gateway.pipeline.wire_tls import Identity
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol import answers, leb128
from splitinference_protocol.answers import Timing
from splitinference_protocol.errors import INTERNAL, NEXT_HOP_FAILED
from splitinference_protocol.frames import MOST_ANSWER, NOTHING
from splitinference_protocol.meta import encoded
from splitinference_protocol.pooling import Pooling
from splitinference_protocol.request import ITEM_BYTES, AskedFilter, Hop, Prefix, Request, TensorMeta

TRANSPORT = "transport"
STALLED = "stalled"
_MOST_OUTPUTS = 512 << 20  # bytes of tensors in one answer
_SAID_BY_US = {
    INTERNAL: "the segment failed",
    TRANSPORT: "the segment cannot be reached",
    NEXT_HOP_FAILED: "the segment after it cannot be reached",
}
"""What a client may read of these: what is behind them names hosts, files and exceptions, and is for the log."""
_log = logging.getLogger(__name__)


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
    filter: AskedFilter | None = None  # that the first segment should use


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
class Sifted:
    """What the first segment's filter did to a request: rows skipped; rows that ran to be compared, and those of them where the model
    agreed. `problem`: why it did nothing."""

    skipped: int = 0
    compared: int = 0
    agreed: int = 0
    problem: str = ""


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
    sifted: Sifted | None = None  # what the first segment's filter did, where one was asked for
    resumed: str = ""  # how the sequence was brought onto that route since the token before: one of chain.RESUMED; empty: it was there


@dataclass(frozen=True)
class Pulled:
    """What a segment's pull of KV moved, and how long it took."""

    bytes: int
    seconds: float


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


class StepClient:
    """Sends steps along pipelines. `address_of`: host:port of a segment's wire, by its name."""

    def __init__(self, address_of: Callable[[str], str], identity: Identity | None = None) -> None:
        """Nothing is connected yet. Without an identity there is no TLS."""
        self.connections = Connections(address_of, identity)

    async def step(
        self,
        pipeline: Sequence[Hop],
        sequence: str,
        *,
        position: int,
        tokens: Sequence[int],
        sampling: Sampling | None,
        seconds: float,
        prefix: Prefix | None = None,
        targets: Sequence[int] = (),
        alternatives: int = 0,
        drafts: Sequence[int] = (),
        drop: int = 0,
    ) -> Answer:
        """Run `tokens` at `position` through the pipeline; sample only when `sampling` is given.

        `targets` follow on the tokens one by one: the answer says how likely each is, beside so many `alternatives`.

        `drafts` are supposed to follow on `tokens`: the answer has as many more tokens as were right. `drop`: how many tokens the segments
        hold behind `position`, of drafts that were not.

        `prefix` names the blocks that the sequence begins with: it starts anew, with others' KV of its first `position` tokens.

        Raises:
            StepError: the chain could not do it, or not within `seconds`.
        """
        logits = sampling is not None and sampling.logits
        request = Request(
            "step",
            sequence,
            position,
            TensorMeta("int64", (len(tokens) + len(drafts),)),
            tuple(pipeline[1:]),
            sample=sampling is not None,
            logits=logits,
            sampling=sampling or Sampling(logprobs=alternatives),
            targets=leb128.pack(targets) if targets else "",
            deadline_ms=int(seconds * 1000),
            prefix=prefix,
            drafts=tuple(drafts),
            drop=drop,
        )
        started = time.perf_counter()
        told = await self._traced(pipeline[0], request, array.array("q", (*tokens, *drafts)).tobytes(), seconds)
        took = time.perf_counter() - started
        outputs = _outputs(told.fields, told.data, pipeline[0].segment) if logits else ()
        scored = _scored(told.fields, len(targets), pipeline[-1].segment) if targets else ()
        sampled = sampling is not None and not logits
        answer = _answer(told, pipeline[0].segment, took, sampled=sampled, outputs=outputs, scored=scored)
        return replace(answer, more=_more(told.fields, answer, drafts, pipeline[-1].segment)) if drafts else answer

    async def infer(
        self, pipeline: Sequence[Hop], *, dtype: str, shape: Sequence[int], data: bytes, seconds: float, wanted: Wanted = EVERYTHING
    ) -> Answer:
        """Run a tensor through a pipeline that keeps no sequences; the answer has the last segment's outputs that are wanted.

        Raises:
            StepError: the chain could not do it, or not within `seconds`.
        """
        tensor = TensorMeta(dtype, tuple(shape))
        route, deadline_ms = tuple(pipeline[1:]), int(seconds * 1000)
        request = Request(
            "infer",
            tensor=tensor,
            route=route,
            deadline_ms=deadline_ms,
            outputs=wanted.outputs,
            pooling=wanted.pooling,
            filter=wanted.filter,
        )
        started = time.perf_counter()
        told = await self._traced(pipeline[0], request, data, seconds)
        took = time.perf_counter() - started
        outputs = _outputs(told.fields, told.data, pipeline[0].segment)
        if missing := set(wanted.outputs) - {output.name for output in outputs}:
            raise StepError(INTERNAL, f"the answer lacks the output {min(missing)}", pipeline[-1].segment)
        answer = _answer(told, pipeline[0].segment, took, sampled=False, outputs=outputs)
        return answer if wanted.filter is None else replace(answer, sifted=_sifted(told.fields, pipeline[0].segment))

    async def release(self, pipeline: Sequence[Hop], sequence: str, seconds: float, prefix: Prefix | None = None) -> None:
        """Let every segment of the pipeline forget the sequence; when the way is broken, tell each of them directly.

        The KV of the blocks that `prefix` names may be kept for others.
        """
        try:
            await self._release(pipeline, sequence, seconds, prefix)
        except StepError:
            if len(pipeline) > 1:
                await asyncio.gather(*(self._release((hop,), sequence, seconds) for hop in pipeline), return_exceptions=True)

    async def pull(self, hop: Hop, sequence: str, *, position: int, tokens: int, sources: Sequence[Hop], seconds: float) -> Pulled:
        """Let a segment fetch the KV of tokens [position, position + tokens) from the segments that hold it.

        Raises:
            StepError: it could not, or not within `seconds`.
        """
        meta = answers.question(
            "kv_pull",
            sequence=sequence,
            position=position,
            tokens=tokens,
            sources=[source.as_json for source in sources],
            deadline_ms=int(seconds * 1000),
        )
        started = time.perf_counter()
        answer = (await self._exchange(hop, meta, NOTHING, seconds)).fields
        try:
            if int(answer["held"]) == position + tokens:
                return Pulled(int(answer["bytes"]), time.perf_counter() - started)
        except (KeyError, TypeError, ValueError):
            pass
        raise StepError(INTERNAL, f"not the answer to a pull: {answer!r:.200}", hop.segment)

    async def record(self, hop: Hop, sequence: str, side: str, seconds: float) -> None:
        """Let a segment keep what it receives (side `input`) or sends (`output`) of a sequence, until it is asked for it.

        Raises:
            StepError: it does not, or did not say so within `seconds`.
        """
        await self._exchange(hop, _about("record", sequence, seconds, side=side), NOTHING, seconds)

    async def unrecord(self, hop: Hop, sequence: str, side: str, seconds: float) -> None:
        """Let it keep nothing more. Raises StepError as above."""
        await self._exchange(hop, _about("recorded", sequence, seconds, side=side, last=True), NOTHING, seconds)

    async def recorded(self, hop: Hop, sequence: str, side: str, which: tuple[int, int], seconds: float) -> tuple[str, list[int], bytes]:
        """Dtype, shape and bytes of what a segment kept of `which` tokens (position, number); it is dropped there.

        Raises:
            StepError: it does not have them, or answered with something else.
        """
        position, tokens = which
        asked = _about("recorded", sequence, seconds, side=side, position=position, tokens=tokens)
        told = await self._exchange(hop, asked, NOTHING, seconds, _MOST_OUTPUTS)
        try:
            tensor = told.fields["tensor"]
            dtype, shape = str(tensor["dtype"]), [int(size) for size in tensor["shape"]]
            if dtype in ITEM_BYTES and shape[0] == tokens and math.prod(shape) * ITEM_BYTES[dtype] == len(told.data):
                return dtype, shape, told.data
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise StepError(INTERNAL, f"not what was recorded: {told.fields!r:.200}", hop.segment)

    async def verify(self, hop: Hop, sequence: str, position: int, tensor: tuple[str, Sequence[int], bytes], seconds: float) -> Compared:
        """Let a verifier run a step's input, of this dtype and shape, and compare its output with the one that follows in the bytes.

        Raises:
            StepError: it could not, or answered with something else.
        """
        dtype, shape, data = tensor
        asked = _about("verify", sequence, seconds, position=position, tensor={"dtype": dtype, "shape": list(shape)})
        answer = (await self._exchange(hop, asked, data, seconds)).fields
        try:
            found = Compared(int(answer["tokens"]), position, float(answer["mean"]), float(answer["worst"]), int(answer["worst_at"]))
            if found.tokens == shape[0] and min(found.mean, found.worst) >= 0 and math.isfinite(found.mean + found.worst):
                return found
        except (KeyError, TypeError, ValueError):
            pass
        raise StepError(INTERNAL, f"not the answer of a verifier: {answer!r:.200}", hop.segment)

    async def probe(self, hop: Hop, seconds: float) -> None:
        """Run the segment's own tiny inference.

        Raises:
            StepError: it did not answer in time, or not well.
        """
        await self._exchange(hop, answers.question("probe", deadline_ms=int(seconds * 1000)), NOTHING, seconds)

    async def _release(self, pipeline: Sequence[Hop], sequence: str, seconds: float, prefix: Prefix | None = None) -> None:
        request = Request("release", sequence, route=tuple(pipeline[1:]), deadline_ms=int(seconds * 1000), prefix=prefix)
        await self._exchange(pipeline[0], encoded(request), NOTHING, seconds)

    async def _traced(self, hop: Hop, request: Request, data: bytes, seconds: float) -> "_Told":
        """One request that runs layers, in a span of its own if its client's request is traced."""
        with tracing.step(request) as traced:
            if traceparent := traced.traceparent or request_ids.traceparent():
                request = replace(request, traceparent=traceparent)
            most = _MOST_OUTPUTS if request.op == "infer" or request.logits else MOST_ANSWER
            told = await self._exchange(hop, encoded(request), data, seconds, most)
            traced.answered(told.timings)
            return told

    async def _exchange(self, hop: Hop, meta: bytes, data: bytes, seconds: float, most: int = MOST_ANSWER) -> "_Told":
        try:
            said, content = await self.connections.send(hop, meta, data, seconds, most)
        except NoAnswerError as failure:
            raise _failure(TRANSPORT if failure.in_time else STALLED, failure.message, hop.segment) from failure
        try:
            fields, timings = answers.read(said)
            if "error" not in fields:
                return _Told(fields, timings, content)
            problem = fields["error"]
            code, message, said_by = str(problem["code"]), str(problem["message"]), str(problem.get("segment") or hop.segment)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _failure(TRANSPORT, f"not an answer of a segment: {error!r}", hop.segment) from error
        raise _failure(code, message, said_by)


@dataclass(slots=True)
class _Told:
    """An answer that is no error: META's fields, what each stage took, and DATA."""

    fields: dict[str, Any]
    timings: tuple[Timing, ...]
    data: bytes


def _sifted(fields: Mapping[str, Any], segment: str) -> Sifted:
    """StepError where counts make no sense. A segment that says nothing knows no filters."""
    said = fields.get("filtered", {"problem": "the segment's release knows no filters"})
    try:
        if "problem" in said:
            return Sifted(problem=str(said["problem"])[:200])
        found = Sifted(int(said["skipped"]), int(said["compared"]), int(said["agreed"]))
        if found.skipped >= 0 and 0 <= found.agreed <= found.compared:
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise StepError(INTERNAL, f"not what a filter did: {said!r:.200}", segment)


def _about(op: str, sequence: str, seconds: float, **fields: object) -> bytes:
    """META of a request about a sequence to one segment, beside the chain."""
    return answers.question(op, sequence=sequence, deadline_ms=int(seconds * 1000), **fields)


def _failure(code: str, message: str, segment: str) -> StepError:
    """The failure as a client may read it; its own words go to the log where a client has nothing from them."""
    said = _SAID_BY_US.get(code)
    if said is None:
        return StepError(code, message, segment)
    _log.info("%s: %s: %s", segment, code, message)
    return StepError(code, said, segment)


def _finite(logprob: float) -> float:
    """A log-probability that JSON can carry: OpenAI writes -9999 for what is impossible. ValueError for what is no number."""
    if math.isnan(logprob) or logprob == math.inf:
        raise ValueError(f"a log-probability of {logprob}")
    return max(logprob, -9999.0)


def _outputs(meta: Mapping[str, Any], content: bytes, first: str) -> tuple[Output, ...]:
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


def _top(said: Any) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), _finite(float(logprob))) for token, logprob in said or ())


def _scored(meta: Mapping[str, Any], number: int, last: str) -> tuple[Scored, ...]:
    try:
        made = tuple(Scored(_finite(float(logprob)), _top(top)) for logprob, top in meta["scored"])
        if len(made) != number:
            raise ValueError(f"{len(made)} log-probabilities for {number} tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the log-probabilities make no sense: {error!r}", last) from error
    return made


def _more(meta: Mapping[str, Any], answer: Answer, drafts: Sequence[int], last: str) -> tuple[Drafted, ...]:
    """The tokens after the first one. An answer without the field is one of a segment that took drafts for tokens of the text."""
    try:
        made = tuple(Drafted(int(token), _finite(float(logprob)), _top(top)) for token, logprob, top in meta["more"])
        if [answer.token, *(each.token for each in made)][: len(made)] != list(drafts[: len(made)]) or len(made) > len(drafts):
            raise ValueError(f"{len(made)} tokens after drafts that were not right")
        if any(each.token < 0 for each in made):
            raise ValueError("a token id below 0")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the answer to drafts makes no sense: {error!r}", last) from error
    return made


def _answer(
    told: _Told, first: str, seconds: float, *, sampled: bool, outputs: tuple[Output, ...] = (), scored: tuple[Scored, ...] = ()
) -> Answer:
    fields = told.fields
    try:
        token = int(fields["token"]) if sampled else None
        if token is not None and token < 0:
            raise ValueError(f"token id {token}")
        logprob = fields.get("logprob")
        top = _top(fields.get("top_logprobs"))
        return Answer(token, None if logprob is None else _finite(float(logprob)), top, told.timings, seconds, outputs, scored=scored)
    except (KeyError, TypeError, ValueError) as error:
        raise StepError(INTERNAL, f"the answer makes no sense: {error!r}", first) from error
