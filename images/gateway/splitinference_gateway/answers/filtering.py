"""Skips rows whose answer will be the useless class, and keeps asking the model whether that is right.

A sampled share of the rows that would be skipped runs all the same. Where the model agrees too seldom, the filter opens: from then on every
row runs, until the gateway gets another filter.
"""

import array
import asyncio
import logging
import math
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splitinference_gateway.metrics import Metrics
from splitinference_gateway.tensor_io.signature import Kind, Signature
from splitinference_gateway.tensor_io.tensors import Tensor
from splitinference_gateway.tokens.tokenizer import ModelFilesError
from splitinference_protocol.input_filter import FilterError, InputFilter, read_filter
from splitinference_protocol.report import Filtered

WINDOW = 400
"""The agreement is that of the last so many rows that were compared."""
LEAST = 50
"""With fewer nothing is concluded."""
_AT_A_TIME = 1 << 16  # multiplications between two looks at the event loop
_log = logging.getLogger(__name__)


@dataclass
class Filtering:
    """One gateway's filter. `sample`: share of skipped rows that run all the same, 0..1; `floor`: the least agreement, 0..1.

    `opened` is told when the filter opens.
    """

    filter: InputFilter
    metrics: Metrics
    opened: Callable[[], None] = lambda: None
    sample: float = 0.01
    floor: float = 0.95
    chance: Callable[[], float] = random.random
    rows: int = 0
    skipped: int = 0
    open: bool = False
    _compared: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def agreement(self) -> float | None:
        """Share of compared rows where the model said the useless class, too; None before there are any."""
        return sum(self._compared) / len(self._compared) if self._compared else None

    async def run(self, given: Tensor, run: Callable[[Tensor], Awaitable[Tensor]]) -> Tensor:
        """The chain's output for all rows [rows, …]; `run` is asked for those that are not skipped. What it raises is raised."""
        try:
            return await self._run(given, run)
        except FilterError as error:  # only the model's own output tells how wide it is
            self._open(f"it is for another model: {error}")
            return await run(given)

    async def _run(self, given: Tensor, run: Callable[[Tensor], Awaitable[Tensor]]) -> Tensor:
        rows = given.shape[0]
        width = len(given.data) // rows
        skipped = await self._skipped(given, width)
        sampled = [row for row in skipped if self.chance() < self.sample]
        away = set(skipped).difference(sampled)
        asked = [row for row in range(rows) if row not in away]
        self._count(rows, len(away))
        if not away:
            made = await run(given)
            self._compare(made, sampled)
            return made
        classes = len(self.filter.answer)
        content = bytearray(_packed(self.filter.answer) * rows)
        name = ""
        if asked:
            data = b"".join(given.data[row * width : (row + 1) * width] for row in asked)
            made = await run(Tensor(given.name, given.datatype, (len(asked), *given.shape[1:]), data))
            self._check_width(made)
            name, size = made.name, 4 * classes
            for place, row in enumerate(asked):
                content[row * size : (row + 1) * size] = made.data[place * size : (place + 1) * size]
            self._compare(made, [place for place, row in enumerate(asked) if row in set(sampled)])
        return Tensor(name, "FP32", (rows, classes), bytes(content))

    def report(self) -> Filtered:
        """For the operator."""
        agreement = self.agreement
        return Filtered(
            rows=self.rows,
            skipped=self.skipped,
            compared=len(self._compared),
            agreement=None if agreement is None else round(agreement, 4),
            floor=self.floor,
            open=self.open,
        )

    async def _skipped(self, given: Tensor, width: int) -> list[int]:
        if self.open or width != 4 * self.filter.inputs:
            return []
        values = array.array("f", given.data)
        if sys.byteorder == "big":
            values.byteswap()
        size, found, since = self.filter.inputs, [], 0
        for row in range(given.shape[0]):
            if self.filter.skips(values[row * size : (row + 1) * size]):
                found.append(row)
            since += size * max(1, len(self.filter.hidden))
            if since >= _AT_A_TIME:
                since = 0
                await asyncio.sleep(0)
        return found

    def _compare(self, made: Tensor, places: Sequence[int]) -> None:
        if not places:
            return
        self._check_width(made)
        values, classes = array.array("f", made.data), len(self.filter.answer)
        if sys.byteorder == "big":
            values.byteswap()
        for place in places:
            agrees = self.filter.agrees(values[place * classes : (place + 1) * classes])
            self._compared.append(agrees)
            self.metrics.filter_compared.labels("yes" if agrees else "no").inc()
        agreement = self.agreement
        if not self.open and agreement is not None and len(self._compared) >= LEAST and agreement < self.floor:
            share = f"{100 * agreement:.1f} % of {len(self._compared)} rows, the floor is {100 * self.floor:.1f} %"
            self._open(f"the model agreed with it for {share}")

    def _open(self, why: str) -> None:
        self.open = True
        self.metrics.filter_open.set(1)
        self.opened()  # answers that were kept may be the filter's
        _log.error("the filter opens, every row runs from now on: %s", why)

    def _check_width(self, made: Tensor) -> None:
        width = math.prod(made.shape[1:])
        if width != len(self.filter.answer):
            raise FilterError(f"the model's output has {width} values a row, the filter's answer {len(self.filter.answer)}")

    def _count(self, rows: int, skipped: int) -> None:
        self.rows += rows
        self.skipped += skipped
        self.metrics.filter_rows.labels("skipped").inc(skipped)
        self.metrics.filter_rows.labels("passed").inc(rows - skipped)


def filtering(file: str, folder: Path, signature: Signature, metrics: Metrics, opened: Callable[[], None]) -> Filtering:
    """The filter in a file of the model's folder.

    Raises:
        ModelFilesError: it cannot be read, is none, or belongs to another model.
    """
    path = folder / file
    if signature.kind is not Kind.CHAIN:
        raise ModelFilesError(f"{path}: a filter is for generic chains (model_type sequential), not for a {signature.kind.value}")
    try:
        made = read_filter(path.read_bytes())
    except (OSError, FilterError) as error:
        raise ModelFilesError(f"{path}: {error}") from error
    takes = math.prod(signature.inputs[0].shape[1:])
    gives = math.prod(signature.outputs[0].shape[1:])
    if made.inputs != takes:
        raise ModelFilesError(f"{path}: the filter takes {made.inputs} values a row, the model {takes}")
    if gives > 0 and len(made.answer) != gives:
        raise ModelFilesError(f"{path}: the filter's answer has {len(made.answer)} values, the model's output {gives}")
    return Filtering(made, metrics, opened)


def _packed(values: Sequence[float]) -> bytes:
    packed = array.array("f", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
