"""One KServe inference: a client's typed tensors become requests along the chain, and their answers the tensors of the reply."""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from splitinference_gateway import tracing
from splitinference_gateway.access.admission import Admission
from splitinference_gateway.answers.filtering import Filtering
from splitinference_gateway.errors import ApiError, invalid, no_route
from splitinference_gateway.pipeline.chain import Chain
from splitinference_gateway.pipeline.step_answers import Answer, Output, Wanted
from splitinference_gateway.pipeline.tensor_chain import TensorChain
from splitinference_gateway.tensor_io.signature import ATTENTION_MASK, INPUT_IDS, TOKEN_TYPES, Kind, Signature
from splitinference_gateway.tensor_io.tensors import ITEM_BYTES, Tensor, little_endian
from splitinference_gateway.tokens.sampling import Sampling
from splitinference_protocol.wire.pooling import SENTENCE_EMBEDDING

_AT_ONCE = 4  # requests of one inference that are under way together: enough to keep the stages of a pipeline busy
_MOST_ROWS = 4096
_CHUNK_BYTES = 1 << 20  # of a generic chain's rows in one request
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class _Row:
    """One row of tokens without its padding."""

    ids: Sequence[int]
    types: Sequence[int]


@dataclass(frozen=True)
class Inference:
    """Runs inferences of one model."""

    signature: Signature
    chain: Chain
    admission: Admission
    context_tokens: int
    request_seconds: float
    most_answer_bytes: int = 64 << 20
    filtering: Filtering | None = None

    async def run(self, given: Sequence[Tensor], wanted: Sequence[str], client: str, adapter: str = "") -> tuple[Tensor, ...]:
        """The outputs of the model that are wanted by name; all, if none is named. `adapter`: its digest, for decoders.

        Raises:
            ApiError: the inputs are wrong, there is no room, or the chain could not do it in time.
        """
        known = [spec.name for spec in self.signature.outputs]
        if unknown := [name for name in wanted if name not in known]:
            raise invalid(f"Unexpected output '{unknown[0]}'; the model gives {', '.join(known)}.", "outputs", "unknown_parameter")
        inputs, names = self._checked(given, wanted or known), tuple(dict.fromkeys(wanted or known))
        made = {tensor.name: tensor for tensor in await self._timed(lambda: self._made(inputs, names, client, adapter))}
        return tuple(made[name] for name in wanted or known)

    async def embedded(self, rows: Sequence[Sequence[int]], client: str, types: Sequence[Sequence[int]] = ()) -> Tensor:
        """What an encoder makes of each row of tokens: the embedding of the text, or a classifier's logits; [rows, width].

        Raises:
            ApiError: the chain could not do it in time, or there is no room.
        """
        spec = self.signature.of_texts
        if spec is None:
            raise ValueError("the gateway asks encoders alone, and only those that give one vector for a row")
        self._check_size((len(rows), max(map(len, rows))), [spec.name])
        asked = [_Row(row, types[index] if types else ()) for index, row in enumerate(rows)]
        (made,) = await self._timed(lambda: self._encoded(asked, (spec.name,), client))
        return made

    async def _timed(self, work: Callable[[], Awaitable[tuple[Tensor, ...]]]) -> tuple[Tensor, ...]:
        """Within the time of a request; the operator hears how long it took."""
        arrived = time.monotonic()
        if not self.chain.routes.takes:
            raise no_route()
        self.chain.observed.arrived(0)
        try:
            async with asyncio.timeout(self.request_seconds):
                made = await work()
        except TimeoutError:
            message = f"The request was not finished within {self.request_seconds:.0f} s."
            raise ApiError(504, message, kind="server_error", code="deadline_exceeded") from None
        took, route = time.monotonic() - arrived, self.chain.routes.current  # its first output is there when all are
        self.chain.metrics.first_token.labels(route.revision if route else "").observe(took, tracing.exemplar())
        self.chain.observed.first_token(took)
        return made

    async def _made(self, inputs: Mapping[str, Tensor], wanted: Sequence[str], client: str, adapter: str) -> tuple[Tensor, ...]:
        match self.signature.kind:
            case Kind.DECODER:
                return await self._logits(self._rows(inputs), client, adapter)
            case Kind.ENCODER:
                return await self._encoded(self._rows(inputs), wanted, client)
            case Kind.CHAIN:
                return await self._chained(inputs[self.signature.inputs[0].name], client)

    def _checked(self, given: Sequence[Tensor], wanted: Sequence[str]) -> Mapping[str, Tensor]:
        specs = {spec.name: spec for spec in self.signature.inputs}
        inputs: dict[str, Tensor] = {}
        for tensor in given:
            if tensor.name not in specs or tensor.name in inputs:
                raise invalid(f"Unexpected input '{tensor.name}'; the model takes {', '.join(specs)}.", tensor.name, "unknown_parameter")
            specs[tensor.name].check(tensor)
            inputs[tensor.name] = tensor
        for spec in specs.values():
            if not spec.optional and spec.name not in inputs:
                raise invalid(f"Missing input '{spec.name}'.", spec.name, "missing_required_parameter")
        self._check_size(inputs[self.signature.inputs[0].name].shape, wanted)
        return inputs

    def _check_size(self, shape: Sequence[int], wanted: Sequence[str]) -> None:
        """Rows, and the answer's bytes as far as the model's files tell them, before anything runs."""
        if shape[0] > (most := self.admission.most if self.signature.kind is Kind.DECODER else _MOST_ROWS):
            raise invalid(f"The inputs have {shape[0]} rows; at most {most} are accepted.", self.signature.inputs[0].name, "invalid_value")
        answer = 0
        for spec in (spec for spec in self.signature.outputs if spec.name in wanted):
            by_token = self.signature.kind is Kind.ENCODER and len(spec.shape) == 3
            sizes = [shape[0], *(shape[1:2] if by_token else ()), *(size for size in spec.shape[1:] if size > 0)]
            answer += math.prod(sizes) * ITEM_BYTES[spec.datatype]
        if answer > self.most_answer_bytes:
            message = f"The answer would have {answer} bytes; at most {self.most_answer_bytes} are given. Send fewer rows."
            raise invalid(message, self.signature.inputs[0].name, "answer_too_large")

    def _rows(self, inputs: Mapping[str, Tensor]) -> list[_Row]:
        shape = inputs[INPUT_IDS].shape
        for tensor in inputs.values():
            if tensor.shape != shape:
                message = f"Input '{tensor.name}' has shape {list(tensor.shape)}, '{INPUT_IDS}' has {list(shape)}."
                raise invalid(message, tensor.name, "invalid_value")
        width, ids = shape[1], inputs[INPUT_IDS].integers()
        types = inputs[TOKEN_TYPES].integers() if TOKEN_TYPES in inputs else None
        mask = inputs[ATTENTION_MASK].integers() if ATTENTION_MASK in inputs else None
        rows = []
        for start in range(0, len(ids), width):
            length = width if mask is None else _length(mask[start : start + width])
            if length > self.context_tokens:
                message = f"Row {start // width} of '{INPUT_IDS}' has {length} tokens; at most {self.context_tokens} fit."
                raise invalid(message, INPUT_IDS, "context_length_exceeded")
            rows.append(_Row(ids[start : start + length], () if types is None else types[start : start + length]))
        return rows

    async def _logits(self, rows: Sequence[_Row], client: str, adapter: str) -> tuple[Tensor, ...]:
        """Each row is a sequence of its own, with KV while it is prefilled."""
        tickets = self.admission.enter(client, [len(row.ids) for row in rows])

        async def last(row: _Row, index: int) -> Output:
            await tickets[index].wait()
            try:
                async with aclosing(self.chain.tokens(row.ids, Sampling(logits=True), adapter=adapter)) as answers:
                    async for answer in answers:
                        return answer.outputs[0]
                raise RuntimeError("a chain ends with an answer or an error")
            finally:
                tickets[index].close()

        try:
            outputs = await _together([last(row, index) for index, row in enumerate(rows)])
        finally:
            for ticket in tickets:
                ticket.close()
        (spec,) = self.signature.outputs
        return (Tensor(spec.name, spec.datatype, (len(rows), *outputs[0].shape), b"".join(output.data for output in outputs)),)

    async def _encoded(self, rows: Sequence[_Row], wanted: Sequence[str], client: str) -> tuple[Tensor, ...]:
        """Rows of equal length go together, as many as a prefill chunk has tokens. Segments send what is wanted, and nothing else."""
        by_length: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            by_length[len(row.ids)].append(index)
        groups: list[list[int]] = []
        for length, indices in by_length.items():
            step = max(1, self.chain.limits.chunk // length)
            groups += [indices[start : start + step] for start in range(0, len(indices), step)]
        runs = [partial(self._encode, [rows[index] for index in group], wanted) for group in groups]
        answers = await self._admitted(runs, client)
        longest = max(by_length)
        made: list[Tensor] = []
        for spec in (spec for spec in self.signature.outputs if spec.name in wanted):
            of_tokens = len(spec.shape) == 3
            width = next(output for output in answers[0].outputs if output.name == spec.name).shape[-1]
            row_bytes = 4 * width * (longest if of_tokens else 1)
            content = bytearray(row_bytes * len(rows))  # zeros where a row was padded
            for group, answer in zip(groups, answers, strict=True):
                output = next(output for output in answer.outputs if output.name == spec.name)
                size = len(output.data) // len(group)
                for place, index in enumerate(group):
                    content[index * row_bytes : index * row_bytes + size] = output.data[place * size : (place + 1) * size]
            shape = (len(rows), longest, width) if of_tokens else (len(rows), width)
            made.append(Tensor(spec.name, spec.datatype, shape, bytes(content)))
        return tuple(made)

    async def _encode(self, rows: Sequence[_Row], wanted: Sequence[str]) -> Answer:
        with_types = bool(rows[0].types)
        shape = (2 if with_types else 1, len(rows), len(rows[0].ids))
        values = [token for row in rows for token in row.ids] + [kind for row in rows for kind in row.types]
        told = Wanted(tuple(wanted), self.signature.sentence.pooling if SENTENCE_EMBEDDING in wanted else None)
        return await TensorChain(self.chain).run("int64", shape, little_endian(values), math.prod(shape[1:]), told)

    async def _chained(self, tensor: Tensor, client: str) -> tuple[Tensor, ...]:
        (spec,) = self.signature.outputs
        if self.filtering is None:
            return (await self._run_chain(tensor, client),)
        made = await self.filtering.run(tensor, lambda rows: self._run_chain(rows, client))
        return (Tensor(spec.name, spec.datatype, made.shape, made.data),)

    async def _run_chain(self, tensor: Tensor, client: str) -> Tensor:
        row_bytes = len(tensor.data) // tensor.shape[0]
        step = max(1, _CHUNK_BYTES // row_bytes)
        runs = []
        for start in range(0, tensor.shape[0], step):
            rows = min(step, tensor.shape[0] - start)
            data = tensor.data[start * row_bytes : (start + rows) * row_bytes]
            runs.append(partial(TensorChain(self.chain).run, "float32", (rows, *tensor.shape[1:]), data, rows))
        outputs = [answer.outputs[0] for answer in await self._admitted(runs, client)]
        (spec,) = self.signature.outputs
        shape = (tensor.shape[0], *outputs[0].shape[1:])
        return Tensor(spec.name, spec.datatype, shape, b"".join(output.data for output in outputs))

    async def _admitted(self, runs: Sequence[Callable[[], Awaitable[Answer]]], client: str) -> list[Answer]:
        """One place for the whole request: it holds no KV."""
        (ticket,) = self.admission.enter(client, [0])
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(run: Callable[[], Awaitable[Answer]]) -> Answer:
            async with gate:
                return await run()

        try:
            await ticket.wait()
            return await _together([one(run) for run in runs])
        finally:
            ticket.close()


async def _together(runs: Sequence[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """Results in order; the first failure ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run) for run in runs]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _length(mask: Sequence[int]) -> int:
    """Tokens before the padding. ApiError 400 for a mask that is not ones followed by zeros."""
    length = sum(mask)
    if not 1 <= length <= len(mask) or any(value != 1 for value in mask[:length]) or any(mask[length:]):
        raise invalid(f"'{ATTENTION_MASK}' must be ones followed by zeros in each row, at least one 1.", ATTENTION_MASK, "invalid_value")
    return length
