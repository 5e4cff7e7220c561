"""One step through the chain, as the gateway asks for it of a pipeline's first segment."""

import array
import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitinference_gateway import tracing
from splitinference_gateway.connections import Connections, NoAnswerError
from splitinference_gateway.history import packed
from splitinference_gateway.route import Hop
from splitinference_gateway.sampling import Sampling
from splitinference_gateway.wire import MOST_ANSWER
from splitinference_gateway.wire_tls import Identity

TRANSPORT = "transport"
STALLED = "stalled"
_NOTHING = b"\0"
_ITEM_BYTES = {"int64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_MOST_OUTPUTS = 512 << 20  # bytes of tensors in one answer
_SAID_BY_US = {
    "internal": "the segment failed",
    TRANSPORT: "the segment cannot be reached",
    "next_hop_failed": "the segment after it cannot be reached",
}
"""What a client may read of these: what is behind them names hosts, files and exceptions, and is for the log."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Timing:
    """What one stage says of one step, in milliseconds; `hop_ms` from sending to the next stage until its answer; `share`: of the tokens
    that were computed together, this step's; None: not said."""

    segment: str
    queue_ms: float
    compute_ms: float
    hop_ms: float
    share: float | None = None


@dataclass(frozen=True)
class Output:
    """One tensor of an answer: float32, little-endian."""

    name: str
    shape: tuple[int, ...]
    data: bytes


@dataclass(frozen=True)
class Scored:
    """What the model says of one token that was given."""

    logprob: float
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
        prefix: Mapping[str, object] | None = None,
        targets: Sequence[int] = (),
        alternatives: int = 0,
    ) -> Answer:
        """Run `tokens` at `position` through the pipeline; sample only when `sampling` is given.

        `targets` follow on the tokens one by one: the answer says how likely each is, beside so many `alternatives`.

        `prefix` names the blocks that the sequence begins with: it starts anew, with others' KV of its first `position` tokens.

        Raises:
            StepError: the chain could not do it, or not within `seconds`.
        """
        meta = {
            "v": 1,
            "op": "step",
            "sequence": sequence,
            "position": position,
            "tensor": {"dtype": "int64", "shape": [len(tokens)]},
            "route": [hop.as_json for hop in pipeline[1:]],
            "sample": sampling is not None,
            "sampling": (sampling or Sampling(logprobs=alternatives)).as_json(),
            "deadline_ms": int(seconds * 1000),
        }
        if prefix is not None:
            meta["prefix"] = prefix
        if targets:
            meta["targets"] = packed(targets)
        if logits := sampling is not None and sampling.logits:
            meta["logits"] = True
        started = time.perf_counter()
        answer, content = await self._exchange(pipeline[0], meta, array.array("q", tokens).tobytes(), seconds)
        outputs = _outputs(answer, content, pipeline[0].segment) if logits else ()
        made = _answer(answer, sampling is not None and not logits, pipeline[0].segment, time.perf_counter() - started, outputs)
        return replace(made, scored=_scored(answer, len(targets), pipeline[-1].segment)) if targets else made

    async def infer(self, pipeline: Sequence[Hop], *, dtype: str, shape: Sequence[int], data: bytes, seconds: float) -> Answer:
        """Run a tensor through a pipeline that keeps no sequences; the answer has the last segment's outputs.

        Raises:
            StepError: the chain could not do it, or not within `seconds`.
        """
        route = [hop.as_json for hop in pipeline[1:]]
        tensor = {"dtype": dtype, "shape": list(shape)}
        meta = {"v": 1, "op": "infer", "tensor": tensor, "route": route, "deadline_ms": int(seconds * 1000)}
        started = time.perf_counter()
        answer, content = await self._exchange(pipeline[0], meta, data, seconds)
        outputs = _outputs(answer, content, pipeline[0].segment)
        return _answer(answer, False, pipeline[0].segment, time.perf_counter() - started, outputs)

    async def release(self, pipeline: Sequence[Hop], sequence: str, seconds: float, prefix: Mapping[str, object] | None = None) -> None:
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
        meta = {
            "v": 1,
            "op": "kv_pull",
            "sequence": sequence,
            "position": position,
            "tokens": tokens,
            "sources": [source.as_json for source in sources],
            "deadline_ms": int(seconds * 1000),
        }
        started = time.perf_counter()
        answer = await self._call(hop, meta, _NOTHING, seconds)
        try:
            if int(answer["held"]) == position + tokens:
                return Pulled(int(answer["bytes"]), time.perf_counter() - started)
        except (KeyError, TypeError, ValueError):
            pass
        raise StepError("internal", f"not the answer to a pull: {answer!r:.200}", hop.segment)

    async def record(self, hop: Hop, sequence: str, side: str, seconds: float) -> None:
        """Let a segment keep what it receives (side `input`) or sends (`output`) of a sequence, until it is asked for it.

        Raises:
            StepError: it does not, or did not say so within `seconds`.
        """
        await self._call(hop, _about("record", sequence, seconds, side=side), _NOTHING, seconds)

    async def unrecord(self, hop: Hop, sequence: str, side: str, seconds: float) -> None:
        """Let it keep nothing more. Raises StepError as above."""
        await self._call(hop, _about("recorded", sequence, seconds, side=side, last=True), _NOTHING, seconds)

    async def recorded(self, hop: Hop, sequence: str, side: str, which: tuple[int, int], seconds: float) -> tuple[str, list[int], bytes]:
        """Dtype, shape and bytes of what a segment kept of `which` tokens (position, number); it is dropped there.

        Raises:
            StepError: it does not have them, or answered with something else.
        """
        position, tokens = which
        asked = _about("recorded", sequence, seconds, side=side, position=position, tokens=tokens)
        answer, content = await self._exchange(hop, asked, _NOTHING, seconds)
        try:
            dtype, shape = str(answer["tensor"]["dtype"]), [int(size) for size in answer["tensor"]["shape"]]
            if dtype in _ITEM_BYTES and shape[0] == tokens and math.prod(shape) * _ITEM_BYTES[dtype] == len(content):
                return dtype, shape, content
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise StepError("internal", f"not what was recorded: {answer!r:.200}", hop.segment)

    async def verify(self, hop: Hop, sequence: str, position: int, tensor: tuple[str, Sequence[int], bytes], seconds: float) -> Compared:
        """Let a verifier run a step's input, of this dtype and shape, and compare its output with the one that follows in the bytes.

        Raises:
            StepError: it could not, or answered with something else.
        """
        dtype, shape, data = tensor
        asked = _about("verify", sequence, seconds, position=position, tensor={"dtype": dtype, "shape": list(shape)})
        answer = await self._call(hop, asked, data, seconds)
        try:
            found = Compared(int(answer["tokens"]), position, float(answer["mean"]), float(answer["worst"]), int(answer["worst_at"]))
            if found.tokens == shape[0] and min(found.mean, found.worst) >= 0 and math.isfinite(found.mean + found.worst):
                return found
        except (KeyError, TypeError, ValueError):
            pass
        raise StepError("internal", f"not the answer of a verifier: {answer!r:.200}", hop.segment)

    async def probe(self, hop: Hop, seconds: float) -> None:
        """Run the segment's own tiny inference.

        Raises:
            StepError: it did not answer in time, or not well.
        """
        await self._call(hop, {"v": 1, "op": "probe", "route": [], "deadline_ms": int(seconds * 1000)}, _NOTHING, seconds)

    async def _release(self, pipeline: Sequence[Hop], sequence: str, seconds: float, prefix: Mapping[str, object] | None = None) -> None:
        route = [hop.as_json for hop in pipeline[1:]]
        meta = {"v": 1, "op": "release", "sequence": sequence, "route": route, "deadline_ms": int(seconds * 1000), "prefix": prefix}
        await self._call(pipeline[0], meta, _NOTHING, seconds)

    async def _call(self, hop: Hop, meta: Mapping[str, object], data: bytes, seconds: float) -> dict[str, Any]:
        return (await self._exchange(hop, meta, data, seconds))[0]

    async def _exchange(self, hop: Hop, meta: Mapping[str, object], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        given = dict(meta)
        with tracing.step(given) as traced:
            answer, content = await self._sent(hop, given, data, seconds)
            traced.answered(answer)
            return answer, content

    async def _sent(self, hop: Hop, meta: Mapping[str, object], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        most = _MOST_OUTPUTS if meta["op"] in ("infer", "recorded") or meta.get("logits") else MOST_ANSWER
        try:
            told, content = await self.connections.send(hop, json.dumps(meta, separators=(",", ":")).encode(), data, seconds, most)
        except NoAnswerError as failure:
            raise _failure(TRANSPORT if failure.in_time else STALLED, failure.message, hop.segment) from failure
        try:
            answer = json.loads(told)
            if not isinstance(answer, dict):
                raise TypeError("META is no object")
            if "error" not in answer:
                return answer, content
            problem = answer["error"]
            code, message, said_by = str(problem["code"]), str(problem["message"]), str(problem.get("segment") or hop.segment)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise _failure(TRANSPORT, f"not an answer of a segment: {error!r}", hop.segment) from error
        raise _failure(code, message, said_by)


def _about(op: str, sequence: str, seconds: float, **fields: object) -> dict[str, object]:
    return {"v": 1, "op": op, "sequence": sequence, "deadline_ms": int(seconds * 1000), **fields}


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
        raise StepError("internal", f"the answer's tensors make no sense: {error!r}", first) from error
    return tuple(made)


def _top(said: Any) -> tuple[tuple[int, float], ...]:
    return tuple((int(token), _finite(float(logprob))) for token, logprob in said or ())


def _scored(meta: Mapping[str, Any], number: int, last: str) -> tuple[Scored, ...]:
    try:
        made = tuple(Scored(_finite(float(logprob)), _top(top)) for logprob, top in meta["scored"])
        if len(made) != number:
            raise ValueError(f"{len(made)} log-probabilities for {number} tokens")
    except (KeyError, TypeError, ValueError) as error:
        raise StepError("internal", f"the log-probabilities make no sense: {error!r}", last) from error
    return made


def _timing(said: Mapping[str, Any]) -> Timing:
    queue_ms, compute_ms, hop_ms = (float(said.get(name) or 0) for name in ("queue_ms", "compute_ms", "hop_ms"))
    share = said.get("share")
    return Timing(str(said["segment"]), queue_ms, compute_ms, hop_ms, None if share is None else float(share))


def _answer(meta: Mapping[str, Any], sampled: bool, first: str, seconds: float, outputs: tuple[Output, ...] = ()) -> Answer:
    try:
        token = int(meta["token"]) if sampled else None
        if token is not None and token < 0:
            raise ValueError(f"token id {token}")
        timings = tuple(_timing(t) for t in meta.get("timings") or ())
        logprob = meta.get("logprob")
        top = _top(meta.get("top_logprobs"))
        return Answer(token, None if logprob is None else _finite(float(logprob)), top, timings, seconds, outputs)
    except (KeyError, TypeError, ValueError) as error:
        raise StepError("internal", f"the answer makes no sense: {error!r}", first) from error
