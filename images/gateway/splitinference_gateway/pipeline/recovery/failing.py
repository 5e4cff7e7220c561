"""Which stages fail right now, as seen from the data path: marked by failed steps, cleared when an inference works again."""

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from splitinference_gateway.pipeline.step_answers import STALLED, TRANSPORT, StepError
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.routing.routes import Routes
from splitinference_protocol import report
from splitinference_protocol.route import Pipeline
from splitinference_protocol.wire.errors import DEADLINE_EXCEEDED, NEXT_HOP_FAILED
from splitinference_protocol.wire.request import Hop

_PROBE_SECONDS = 2.0
_PROBE_EVERY_SECONDS = 1.0
_QUIET_SECONDS = 3.0  # longer than the longest pause between two tries of a sequence, so that `since` stays while it goes on failing
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Suspicion:
    """Which stages a failure points at. Not `certain`: a probe has to tell whether they are broken."""

    stages: Pipeline
    code: str
    certain: bool


def suspicion(pipeline: Pipeline, failure: StepError) -> Suspicion:
    """What a failure says of the stages. Lost KV and taken capacity say nothing."""
    index = next((i for i, hop in enumerate(pipeline) if hop.segment == failure.segment), 0)
    match failure.code:
        case "transport":
            return Suspicion((pipeline[index],), NEXT_HOP_FAILED, certain=True)
        case "next_hop_failed":
            return Suspicion((pipeline[min(index + 1, len(pipeline) - 1)],), NEXT_HOP_FAILED, certain=True)
        case "wrong_segment":
            return Suspicion((pipeline[index],), failure.code, certain=True)
        case "internal":  # may be one sequence's numbers and not the stage
            return Suspicion((pipeline[index],), failure.code, certain=False)
        case "stalled" | "deadline_exceeded":
            return Suspicion(pipeline, DEADLINE_EXCEEDED, certain=False)
        case _:
            return Suspicion((), failure.code, certain=False)


@dataclass
class _Mark:
    """One failing stage; `last` is when a step failed there last (clock seconds)."""

    hop: Hop
    since: datetime
    code: str
    last: float


class Failing:
    """The failing stages, each with since when and with which code."""

    def __init__(self, steps: StepClient, routes: Routes) -> None:
        self._steps = steps
        self._routes = routes
        self._marks: dict[str, _Mark] = {}
        self._diagnosing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._marked = asyncio.Event()

    @property
    def segments(self) -> frozenset[str]:
        """Names of the failing segments."""
        return frozenset(self._marks)

    def failed(self, pipeline: Pipeline, failure: StepError) -> None:
        """A step along this pipeline failed."""
        points_at = suspicion(pipeline, failure)
        if not points_at.certain:
            self.suspect(points_at.stages, _PROBE_SECONDS)
            return
        for hop in points_at.stages:
            self._mark(hop, points_at.code)

    def suspect(self, stages: Pipeline, seconds: float) -> None:
        """One of these may be broken: probe each in the background; one that does not answer well within `seconds` is failing."""
        fresh = tuple(hop for hop in stages if hop.segment not in self._diagnosing)
        self._diagnosing |= {hop.segment for hop in fresh}
        task = asyncio.create_task(self._diagnose(fresh, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def worked(self, pipeline: Pipeline) -> None:
        """A step went through all of this pipeline."""
        if self._marks:
            for hop in pipeline:
                self._clear(hop.segment)

    async def watch(self) -> None:
        """Probe failing stages until they work again or no route knows them. Runs until cancelled."""
        while True:
            await self._marked.wait()
            while self._marks:
                await asyncio.sleep(_PROBE_EVERY_SECONDS)
                known = self._routes.segments
                for segment in [name for name in self._marks if name not in known]:
                    self._clear(segment)
                await asyncio.gather(*(self._probe_again(mark) for mark in list(self._marks.values())))
            self._marked.clear()

    def report(self) -> dict[str, report.Failing]:
        """`failing` of the gateway's report."""
        return {name: report.Failing(since=mark.since.replace(microsecond=0), code=mark.code) for name, mark in self._marks.items()}

    async def _diagnose(self, stages: Pipeline, seconds: float) -> None:
        async def diagnose(hop: Hop) -> None:
            failure = await self._probe(hop, seconds)
            if failure is not None and failure.code not in ("overloaded", "kv_full"):
                code = {TRANSPORT: NEXT_HOP_FAILED, STALLED: DEADLINE_EXCEEDED}.get(failure.code, failure.code)
                self._mark(hop, code)

        try:
            await asyncio.gather(*(diagnose(hop) for hop in stages))
        finally:
            self._diagnosing -= {hop.segment for hop in stages}

    async def _probe_again(self, mark: _Mark) -> None:
        """A stage that answers us may still not be reached by the stage before it: only quiet, and a probe, say that it is well."""
        if await self._probe(mark.hop, _PROBE_SECONDS) is None and time.monotonic() - mark.last > _QUIET_SECONDS:
            self._clear(mark.hop.segment)

    async def _probe(self, hop: Hop, seconds: float) -> StepError | None:
        try:
            await self._steps.probe(hop, seconds)
        except StepError as failure:
            if failure.code == STALLED:
                self._steps.connections.reconnect(hop.segment)
            return failure
        return None

    def _mark(self, hop: Hop, code: str) -> None:
        now = time.monotonic()
        if hop.segment in self._marks:
            self._marks[hop.segment].last = now
            return
        _log.warning("segment %s is failing: %s", hop.segment, code)
        self._marks[hop.segment] = _Mark(hop, datetime.now(UTC), code, now)
        self._marked.set()

    def _clear(self, segment: str) -> None:
        if self._marks.pop(segment, None) is not None:
            _log.info("segment %s is no longer failing", segment)
