"""Answers rows without the model where a learned filter says so, and keeps asking the model whether that is right.

A sampled share of those rows runs all the same. Where the model agrees too seldom, the filter opens: from then on every row runs, until the
gateway gets another filter. A filter over layers runs in the first segment; here it is judged.
"""

import array
import asyncio
import logging
import math
import random
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from splitinference_gateway.answers.nearby import Nearby
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.step_answers import Sifted
from splitinference_gateway.tensor_io.signature import LOGITS, Kind, Signature
from splitinference_gateway.tensor_io.tensors import Tensor
from splitinference_gateway.tokens.tokenizer import ModelFilesError
from splitinference_protocol.input_filter import AnyFilter, FilterError, InputFilter, Of, ReuseFilter, largest, read_filter
from splitinference_protocol.report import Filtered
from splitinference_protocol.wire.request import AskedFilter

WINDOW = 400
"""The agreement is that of the last so many rows that were compared."""
LEAST = 50
"""With fewer nothing is concluded."""
RATE_SECONDS = 60.0
"""The pass rate is that of the rows of so many seconds."""
_AT_A_TIME = 1 << 16  # multiplications between two looks at the event loop
_log = logging.getLogger(__name__)

Run = Callable[[Sequence[int]], Awaitable[Tensor]]


@dataclass
class Filtering:
    """One gateway's filter. `sample`: share of answered rows that run all the same, 0..1; `floor`: the least agreement, 0..1.

    `opened` is told when the filter opens. `by_client`: a client gets answers to its own earlier rows alone. `model`: what the route serves
    now; answers of another model are not used. `seconds`: for how long an answer is used again.
    """

    filter: AnyFilter
    file: str
    metrics: Metrics
    opened: Callable[[], None] = lambda: None
    sample: float = 0.01
    floor: float = 0.95
    by_client: bool = True
    seconds: float = 600.0
    model: Callable[[], str | None] = lambda: ""
    chance: Callable[[], float] = random.random
    clock: Callable[[], float] = time.monotonic
    rows: int = 0
    skipped: int = 0
    open: bool = False
    problem: str = ""
    _compared: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _passed: deque[tuple[float, int, int]] = field(default_factory=deque)  # when, rows, and those that ran; by the second

    def __post_init__(self) -> None:
        """Mode Reuse begins with no earlier rows."""
        self.nearby = Nearby(self.filter, self.seconds, self.clock) if isinstance(self.filter, ReuseFilter) else None

    @property
    def of(self) -> Of:
        """What the filter sees of a row."""
        return self.filter.features.of

    def asked(self, *, anew: bool) -> AskedFilter | None:
        """What the first segment is asked to use; None where the filter is run here, or is open, or the client wants the model's answer."""
        return AskedFilter(self.file, self.sample) if self.of is Of.LAYERS and not self.open and not anew else None

    @property
    def agreement(self) -> float | None:
        """Share of compared rows where the model said the same class; None before there are any."""
        return sum(self._compared) / len(self._compared) if self._compared else None

    @property
    def pass_rate(self) -> float | None:
        """Share of the rows of the last minute for which the first segment ran; None where none came."""
        self._forget()
        rows = sum(came for _, came, _ in self._passed)
        return sum(ran for _, _, ran in self._passed) / rows if rows else None

    async def run(self, rows: Sequence[Sequence[float]], client: str, run: Run, *, anew: bool = False) -> Tensor:
        """The model's output for all rows, [rows, classes]; `run` is asked for those (by index) that are not answered here.

        `anew`: the client wants the model's own answers. What `run` raises is raised.
        """
        model = self.model()
        if self.open or model is None or anew:
            self._count(len(rows), 0)
            return await run(range(len(rows)))
        try:
            return await self._run(rows, f"{model}\n{client if self.by_client else ''}", run)
        except FilterError as error:  # only the model's own output tells how wide it is
            self._open(f"it is for another model: {error}")
            return await run(range(len(rows)))

    async def _run(self, rows: Sequence[Sequence[float]], owner: str, run: Run) -> Tensor:
        known, units = await self._known(rows, owner)
        sampled = {row for row in known if self.chance() < self.sample}
        asked = [row for row in range(len(rows)) if row not in known or row in sampled]
        self._count(len(rows), len(rows) - len(asked))
        classes, content, name = self.filter.classes, bytearray(), ""
        made = await run(asked) if asked else None
        if made is not None:
            width = math.prod(made.shape[1:])
            if width != classes:
                raise FilterError(f"the model's output has {width} values a row, the filter's answer {classes}")
            name = made.name
            self._learn(made, asked, {row: known[row] for row in sampled}, units, owner)
        places, size = {row: place for place, row in enumerate(asked)}, 4 * classes
        for row in range(len(rows)):
            place = places.get(row)
            content += known[row] if made is None or place is None else made.data[place * size : (place + 1) * size]
        return Tensor(name, "FP32", (len(rows), classes), bytes(content))

    def passed(self, rows: int) -> None:
        """So many rows run: they ask for what the filter does not know."""
        self._count(rows, 0)

    def told(self, rows: int, sifted: Sifted) -> None:
        """What the first segment's filter did to so many rows."""
        self.problem = sifted.problem
        self.rows += rows
        self.skipped += sifted.skipped
        self._count_metrics(rows, sifted.skipped)
        for place in range(sifted.compared):
            self._compare(place < sifted.agreed)
        self._judge()

    def report(self) -> Filtered:
        """For the operator."""
        agreement, passed = self.agreement, self.pass_rate
        return Filtered(
            rows=self.rows,
            skipped=self.skipped,
            mode="Skip" if isinstance(self.filter, InputFilter) else "Reuse",
            pass_rate=None if passed is None else round(passed, 4),
            problem=self.problem,
            compared=len(self._compared),
            agreement=None if agreement is None else round(agreement, 4),
            floor=self.floor,
            open=self.open,
        )

    async def _known(self, rows: Sequence[Sequence[float]], owner: str) -> tuple[Mapping[int, bytes], Mapping[int, Sequence[float]]]:
        """Answers to rows by index, and in mode Reuse what the network makes of each row."""
        found: dict[int, bytes] = {}
        units: dict[int, Sequence[float]] = {}
        answer = packed(self.filter.answer) if isinstance(self.filter, InputFilter) else b""
        each, since = self.filter.features.multiplications, 0
        for index, row in enumerate(rows):
            if isinstance(self.filter, InputFilter):
                if self.filter.skips(row):
                    found[index] = answer
            elif self.nearby is not None and all(map(math.isfinite, row)):
                units[index] = self.filter.features.units(row)
                if (earlier := self.nearby.answer(owner, units[index])) is not None:
                    found[index] = earlier
                since += self.filter.entries * self.filter.features.width
            since += each * (len(row) if self.of is Of.TOKENS else 1)
            if since >= _AT_A_TIME:
                since = 0
                await asyncio.sleep(0)
        return found, units

    def _learn(
        self, made: Tensor, asked: Sequence[int], sampled: Mapping[int, bytes], units: Mapping[int, Sequence[float]], owner: str
    ) -> None:
        """From what the model says: whether it agrees, and answers for later rows."""
        size = 4 * self.filter.classes
        for place, row in enumerate(asked):
            output = made.data[place * size : (place + 1) * size]
            if row in sampled:
                self._compare(largest(unpacked(output)) == largest(unpacked(sampled[row])))
            if self.nearby is not None and row in units:
                self.nearby.keep(owner, units[row], output)
        self._judge()

    def _compare(self, agrees: bool) -> None:
        self._compared.append(agrees)
        self.metrics.filter_compared.labels("yes" if agrees else "no").inc()

    def _judge(self) -> None:
        agreement = self.agreement
        if not self.open and agreement is not None and len(self._compared) >= LEAST and agreement < self.floor:
            share = f"{100 * agreement:.1f} % of {len(self._compared)} rows, the floor is {100 * self.floor:.1f} %"
            self._open(f"the model agreed with it for {share}")

    def _open(self, why: str) -> None:
        self.open = True
        self.metrics.filter_open.set(1)
        if self.nearby is not None:
            self.nearby.forget()
        self.opened()  # answers that were kept may be the filter's
        _log.error("the filter opens, every row runs from now on: %s", why)

    def _count(self, rows: int, skipped: int) -> None:
        self.rows += rows
        self.skipped += skipped
        self._count_metrics(rows, skipped)
        self._forget()
        second = float(int(self.clock()))
        _, came, ran = self._passed.pop() if self._passed and self._passed[-1][0] == second else (second, 0, 0)
        self._passed.append((second, came + rows, ran + rows - skipped))

    def _count_metrics(self, rows: int, skipped: int) -> None:
        self.metrics.filter_rows.labels("skipped").inc(skipped)
        self.metrics.filter_rows.labels("passed").inc(rows - skipped)

    def _forget(self) -> None:
        while self._passed and self._passed[0][0] < self.clock() - RATE_SECONDS:
            self._passed.popleft()


def read(file: str, mode: str, layers: int, folder: Path, signature: Signature) -> AnyFilter:
    """The filter in a file of the model's folder. `mode`: skip or reuse. `layers`: spec.filter.afterLayers.

    Raises:
        ModelFilesError: it cannot be read, is none, or belongs to another model.
    """
    path = folder / file
    if signature.kind is Kind.DECODER:
        raise ModelFilesError(f"{path}: a filter is for classifiers of texts and for generic chains, not for a {signature.kind.value}")
    try:
        made = read_filter(path.read_bytes())
    except (OSError, FilterError) as error:
        raise ModelFilesError(f"{path}: {error}") from error
    if (found := "skip" if isinstance(made, InputFilter) else "reuse") != mode:
        raise ModelFilesError(f"{path}: the filter is of mode {found.title()}, spec.filter.mode is {mode.title()}")
    if made.features.layers != layers:
        raise ModelFilesError(f"{path}: the filter is over {made.features.layers} layers, spec.filter.afterLayers is {layers}")
    gives = _classes(path, signature)
    of, inputs = made.features.of, made.features.inputs
    if of is not Of.LAYERS and (of is Of.TOKENS) != (signature.kind is Kind.ENCODER):
        takes = "tokens" if signature.kind is Kind.ENCODER else "values"
        raise ModelFilesError(f"{path}: the filter is over {of.value}, the model takes {takes}")
    if of is Of.VALUES and inputs != (takes_values := math.prod(signature.inputs[0].shape[1:])):
        raise ModelFilesError(f"{path}: the filter takes {inputs} values a row, the model {takes_values}")
    if gives > 0 and made.classes != gives:
        raise ModelFilesError(f"{path}: the filter's answer has {made.classes} values, the model's output {gives}")
    if gives <= 0 and of is Of.LAYERS:
        raise ModelFilesError(f"{path}: a filter over layers needs output.shape in the model's config.json")
    return made


def _classes(path: Path, signature: Signature) -> int:
    """Values of a row of the output; negative where the model's files do not tell."""
    if signature.kind is Kind.CHAIN:
        return math.prod(signature.outputs[0].shape[1:])
    spec = next((spec for spec in signature.outputs if spec.name == LOGITS and len(spec.shape) == 2), None)
    if spec is None:
        raise ModelFilesError(f"{path}: a filter needs an output of classes for each text; this model gives {signature.outputs[0].name}")
    return spec.shape[1]


def packed(values: Sequence[float]) -> bytes:
    """As float32, little-endian."""
    made = array.array("f", values)
    if sys.byteorder == "big":
        made.byteswap()
    return made.tobytes()


def unpacked(data: bytes) -> "array.array[float]":
    """Of float32, little-endian."""
    made = array.array("f", data)
    if sys.byteorder == "big":
        made.byteswap()
    return made
