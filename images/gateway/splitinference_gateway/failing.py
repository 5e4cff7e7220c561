"""Which stages fail right now, as seen from the data path: marked by failed steps, cleared when an inference works again."""

import asyncio
import logging
from datetime import UTC, datetime

from splitinference_gateway.route import Hop, Pipeline
from splitinference_gateway.routes import Routes
from splitinference_gateway.steps import STALLED, TRANSPORT, StepClient, StepError

NEXT_HOP_FAILED = "next_hop_failed"
DEADLINE_EXCEEDED = "deadline_exceeded"
_PROBE_SECONDS = 2.0
_PROBE_EVERY_SECONDS = 1.0
_log = logging.getLogger(__name__)


def suspects(pipeline: Pipeline, failure: StepError) -> tuple[tuple[Hop, ...], str]:
    """The stages that a failure puts under suspicion, and the code to report; more than one: only a probe can tell.

    None where no stage is broken: the sequence's KV was lost, or capacity is short.
    """
    index = next((i for i, hop in enumerate(pipeline) if hop.segment == failure.segment), 0)
    match failure.code:
        case "transport":
            return (pipeline[index],), NEXT_HOP_FAILED
        case "next_hop_failed":
            return (pipeline[min(index + 1, len(pipeline) - 1)],), NEXT_HOP_FAILED
        case "wrong_segment" | "internal":
            return (pipeline[index],), failure.code
        case "stalled" | "deadline_exceeded":
            return pipeline, DEADLINE_EXCEEDED
        case _:
            return (), failure.code


class Failing:
    """The failing stages, each with since when and with which code."""

    def __init__(self, steps: StepClient, routes: Routes) -> None:
        self._steps = steps
        self._routes = routes
        self._failing: dict[str, tuple[datetime, str]] = {}
        self._hops: dict[str, Hop] = {}
        self._diagnosing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._marked = asyncio.Event()

    @property
    def segments(self) -> frozenset[str]:
        """Names of the failing segments."""
        return frozenset(self._failing)

    def failed(self, pipeline: Pipeline, failure: StepError) -> None:
        """A step along this pipeline failed."""
        stages, code = suspects(pipeline, failure)
        if len(stages) > 1:
            self.suspect(pipeline, _PROBE_SECONDS)
        else:
            for hop in stages:
                self._mark(hop, code)

    def suspect(self, pipeline: Pipeline, seconds: float) -> None:
        """Nobody knows which stage is silent: ask each, in the background; one that does not answer within `seconds` is failing."""
        task = asyncio.create_task(self._diagnose(pipeline, seconds))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def worked(self, pipeline: Pipeline) -> None:
        """A step went through all of this pipeline."""
        if self._failing:
            for hop in pipeline:
                self._clear(hop.segment)

    async def watch(self) -> None:
        """Probe failing stages until they work again or no route knows them. Runs until cancelled."""
        while True:
            await self._marked.wait()
            while self._failing:
                await asyncio.sleep(_PROBE_EVERY_SECONDS)
                known = self._routes.segments
                for segment in [name for name in self._failing if name not in known]:
                    self._clear(segment)
                await asyncio.gather(*(self._probe(hop) for hop in list(self._hops.values())))
            self._marked.clear()

    def as_json(self) -> dict[str, dict[str, str]]:
        """`failing` of the internal routes API."""
        return {segment: {"since": since.strftime("%Y-%m-%dT%H:%M:%SZ"), "code": code} for segment, (since, code) in self._failing.items()}

    async def _diagnose(self, pipeline: Pipeline, seconds: float) -> None:
        fresh = [hop for hop in pipeline if hop.segment not in self._diagnosing]
        self._diagnosing |= {hop.segment for hop in fresh}
        try:
            results = await asyncio.gather(*(self._steps.probe(hop, seconds) for hop in fresh), return_exceptions=True)
        finally:
            self._diagnosing -= {hop.segment for hop in fresh}
        for hop, result in zip(fresh, results, strict=True):
            if isinstance(result, StepError):
                if result.code == STALLED:
                    self._steps.reconnect(hop.segment)
                self._mark(hop, NEXT_HOP_FAILED if result.code == TRANSPORT else DEADLINE_EXCEEDED)

    async def _probe(self, hop: Hop) -> None:
        try:
            await self._steps.probe(hop, _PROBE_SECONDS)
        except StepError as failure:
            if failure.code == STALLED:
                self._steps.reconnect(hop.segment)
        else:
            self._clear(hop.segment)

    def _mark(self, hop: Hop, code: str) -> None:
        if hop.segment not in self._failing:
            _log.warning("segment %s is failing: %s", hop.segment, code)
            self._failing[hop.segment] = (datetime.now(UTC), code)
            self._hops[hop.segment] = hop
            self._marked.set()

    def _clear(self, segment: str) -> None:
        if self._failing.pop(segment, None) is not None:
            self._hops.pop(segment, None)
            _log.info("segment %s is no longer failing", segment)
