"""One step through the chain, as the gateway asks for it of a pipeline's first segment."""

import array
import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from splitinference_gateway import request_ids, tracing
from splitinference_gateway.pipeline.step_answers import (
    EVERYTHING,
    STALLED,
    TRANSPORT,
    Answer,
    Compared,
    Hidden,
    Pulled,
    StepError,
    Told,
    Wanted,
    answer_of,
    drafted_of,
    failed_step,
    outputs_of,
    scored_of,
)
from splitinference_gateway.pipeline.transport.connections import Connections, NoAnswerError
from splitinference_gateway.pipeline.transport.wire_tls import Identity
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.wire import answers, leb128
from splitinference_protocol.wire.errors import INTERNAL
from splitinference_protocol.wire.frames import MOST_ANSWER, NOTHING
from splitinference_protocol.wire.meta import encoded
from splitinference_protocol.wire.request import ITEM_BYTES, Hop, Prefix, Request, TensorMeta

_MOST_OUTPUTS = 512 << 20  # bytes of tensors in one answer


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
        adapter: str = "",
    ) -> Answer:
        """Run `tokens` at `position` through the pipeline; sample only when `sampling` is given.

        `targets` follow on the tokens one by one: the answer says how likely each is, beside so many `alternatives`.

        `drafts` are supposed to follow on `tokens`: the answer has as many more tokens as were right. `drop`: how many tokens the segments
        hold behind `position`, of drafts that were not.

        `adapter`: the digest of the adapter to run with.

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
            adapter=adapter,
        )
        started = time.perf_counter()
        told = await self._traced(pipeline[0], request, array.array("q", (*tokens, *drafts)).tobytes(), seconds)
        took = time.perf_counter() - started
        outputs = outputs_of(told.fields, told.data, pipeline[0].segment) if logits else ()
        scored = scored_of(told.fields, len(targets), pipeline[-1].segment) if targets else ()
        sampled = sampling is not None and not logits
        answer = answer_of(told, pipeline[0].segment, took, sampled=sampled, outputs=outputs, scored=scored)
        return replace(answer, more=drafted_of(told.fields, answer, drafts, pipeline[-1].segment)) if drafts else answer

    async def infer(
        self, pipeline: Sequence[Hop], *, dtype: str, shape: Sequence[int], data: bytes, seconds: float, wanted: Wanted = EVERYTHING
    ) -> Answer:
        """Run a tensor through a pipeline that keeps no sequences; the answer has the last segment's outputs that are wanted.

        Raises:
            StepError: the chain could not do it, or not within `seconds`.
        """
        tensor = TensorMeta(dtype, tuple(shape))
        route, deadline_ms = tuple(pipeline[1:]), int(seconds * 1000)
        request = Request("infer", tensor=tensor, route=route, deadline_ms=deadline_ms, outputs=wanted.outputs, pooling=wanted.pooling)
        started = time.perf_counter()
        told = await self._traced(pipeline[0], request, data, seconds)
        took = time.perf_counter() - started
        outputs = outputs_of(told.fields, told.data, pipeline[0].segment)
        if missing := set(wanted.outputs) - {output.name for output in outputs}:
            raise StepError(INTERNAL, f"the answer lacks the output {min(missing)}", pipeline[-1].segment)
        return answer_of(told, pipeline[0].segment, took, sampled=False, outputs=outputs)

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

    async def recorded(self, hop: Hop, sequence: str, side: str, which: tuple[int, int], seconds: float) -> Hidden:
        """Dtype, shape and bytes of what a segment kept of `which` tokens (position, number); it is dropped there.

        Raises:
            StepError: it does not have them, or answered with something else.
        """
        position, tokens = which
        asked = _about("recorded", sequence, seconds, side=side, position=position, tokens=tokens)
        return _hidden(await self._exchange(hop, asked, NOTHING, seconds, _MOST_OUTPUTS), tokens, hop)

    async def compute(self, hop: Hop, sequence: str, position: int, tensor: Hidden, seconds: float, *, most: int) -> Hidden:
        """Let a replica run a step's input, of this dtype and shape, and give its output. It is not told what another made of it.

        `most`: bytes that the output may have. A replica need not be trusted, so no more of its answer is read.

        Raises:
            StepError: it could not, or answered with something else.
        """
        dtype, shape, data = tensor
        asked = _about("compute", sequence, seconds, position=position, tensor={"dtype": dtype, "shape": list(shape)})
        return _hidden(await self._exchange(hop, asked, data, seconds, most), shape[0], hop)

    async def compare(self, hop: Hop, sequence: str, position: int, outputs: tuple[Hidden, Hidden], seconds: float) -> Compared:
        """Let a witness say how far two outputs of the same tokens are apart: what is expected, and what is compared with it.

        Raises:
            StepError: they are not of the same tokens, it could not, or it answered with something else.
        """
        (dtype, shape, expected), (other, size, given) = outputs
        if (dtype, list(shape)) != (other, list(size)):
            raise StepError(INTERNAL, f"an output {dtype} {list(shape)} cannot be compared with {other} {list(size)}", hop.segment)
        asked = _about("compare", sequence, seconds, position=position, tensor={"dtype": dtype, "shape": list(shape)})
        return _compared((await self._exchange(hop, asked, expected + given, seconds)).fields, position, shape[0], hop)

    async def verify(self, hop: Hop, sequence: str, position: int, tensor: Hidden, seconds: float) -> Compared:
        """Let a verifier run a step's input, of this dtype and shape, and compare its output with the one that follows in the bytes.

        Raises:
            StepError: it could not, or answered with something else.
        """
        dtype, shape, data = tensor
        asked = _about("verify", sequence, seconds, position=position, tensor={"dtype": dtype, "shape": list(shape)})
        return _compared((await self._exchange(hop, asked, data, seconds)).fields, position, shape[0], hop)

    async def probe(self, hop: Hop, seconds: float) -> None:
        """Run the segment's own tiny inference.

        Raises:
            StepError: it did not answer in time, or not well.
        """
        await self._exchange(hop, answers.question("probe", deadline_ms=int(seconds * 1000)), NOTHING, seconds)

    async def _release(self, pipeline: Sequence[Hop], sequence: str, seconds: float, prefix: Prefix | None = None) -> None:
        request = Request("release", sequence, route=tuple(pipeline[1:]), deadline_ms=int(seconds * 1000), prefix=prefix)
        await self._exchange(pipeline[0], encoded(request), NOTHING, seconds)

    async def _traced(self, hop: Hop, request: Request, data: bytes, seconds: float) -> Told:
        """One request that runs layers, in a span of its own if its client's request is traced."""
        with tracing.step(request) as traced:
            if traceparent := traced.traceparent or request_ids.traceparent():
                request = replace(request, traceparent=traceparent)
            most = _MOST_OUTPUTS if request.op == "infer" or request.logits else MOST_ANSWER
            told = await self._exchange(hop, encoded(request), data, seconds, most)
            traced.answered(told.timings)
            return told

    async def _exchange(self, hop: Hop, meta: bytes, data: bytes, seconds: float, most: int = MOST_ANSWER) -> Told:
        try:
            said, content = await self.connections.send(hop, meta, data, seconds, most)
        except NoAnswerError as failure:
            raise failed_step(TRANSPORT if failure.in_time else STALLED, failure.message, hop.segment) from failure
        try:
            fields, timings = answers.read(said)
            if "error" not in fields:
                return Told(fields, timings, content)
            problem = fields["error"]
            code, message, said_by = str(problem["code"]), str(problem["message"]), str(problem.get("segment") or hop.segment)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise failed_step(TRANSPORT, f"not an answer of a segment: {error!r}", hop.segment) from error
        raise failed_step(code, message, said_by)


def _hidden(told: Told, tokens: int, hop: Hop) -> Hidden:
    """Hidden states of so many tokens, as a segment gives them. Raises StepError where they are none."""
    try:
        tensor = told.fields["tensor"]
        dtype, shape = str(tensor["dtype"]), [int(size) for size in tensor["shape"]]
        if dtype in ITEM_BYTES and shape[0] == tokens and math.prod(shape) * ITEM_BYTES[dtype] == len(told.data):
            return dtype, shape, told.data
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    raise StepError(INTERNAL, f"not the hidden states of {tokens} tokens: {told.fields!r:.200}", hop.segment)


def _compared(answer: dict[str, Any], position: int, tokens: int, hop: Hop) -> Compared:
    """What a comparison of so many tokens found. Raises StepError where the answer says nothing of it."""
    try:
        found = Compared(int(answer["tokens"]), position, float(answer["mean"]), float(answer["worst"]), int(answer["worst_at"]))
        if found.tokens == tokens and min(found.mean, found.worst) >= 0 and math.isfinite(found.mean + found.worst):
            return found
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    raise StepError(INTERNAL, f"not the answer of a verifier: {answer!r:.200}", hop.segment)


def _about(op: str, sequence: str, seconds: float, **fields: object) -> bytes:
    """META of a request about a sequence to one segment, beside the chain."""
    return answers.question(op, sequence=sequence, deadline_ms=int(seconds * 1000), **fields)
