"""Models without sequences along the chain: a tensor goes in, tensors come out; what fails is run again over the route of that moment."""

import logging
from dataclasses import dataclass

from splitinference_gateway.pipeline.chain import NO_ROUTE, Chain
from splitinference_gateway.pipeline.recovery.mending import Mending
from splitinference_gateway.pipeline.step_answers import EVERYTHING, Answer, StepError, Wanted
from splitinference_gateway.routing.lanes import Lane, Wish

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorChain:
    """Uses the routes, connections and patience of `chain`."""

    chain: Chain

    async def run(self, dtype: str, shape: tuple[int, ...], data: bytes, tokens: int, wanted: Wanted = EVERYTHING) -> Answer:
        """Run one tensor through a pipeline; `tokens` says how much work that is, for the time it may take.

        Raises:
            ApiError: the chain refused it, or stayed broken for longer than the replay limit.
        """
        chain, mending = self.chain, Mending(self.chain.limits.replay)
        left: list[Lane] = []
        while True:
            await chain.routes.awake()
            try:
                return await self._once(dtype, shape, data, chain.step_seconds(tokens, mending.stalls), wanted=wanted, left=left)
            except StepError as failure:
                _log.info("infer: %s", failure)
                pause = mending.pause_after(failure, elsewhere=bool(left) and chain.routes.has_other(left[0], chain.failing.segments))
                chain.metrics.replays.labels(failure.code).inc()
                chain.observed.replay()
            await chain.routes.changed(pause)

    async def _once(self, dtype: str, shape: tuple[int, ...], data: bytes, seconds: float, *, wanted: Wanted, left: list[Lane]) -> Answer:
        """`left`: the lane where it failed last, if it did; one where it fails now takes its place."""
        chain = self.chain
        lease = chain.routes.lease(chain.failing.segments, Wish(left=left[0] if left else None))
        if lease is None:
            raise StepError(NO_ROUTE, "there is no route", "")
        try:
            answer = await chain.steps.infer(lease.pipeline, dtype=dtype, shape=shape, data=data, seconds=seconds, wanted=wanted)
        except StepError as failure:
            chain.failing.failed(lease.pipeline, failure)
            left[:] = [lease.lane]
            raise
        finally:
            lease.give_back()
        chain.failing.worked(lease.pipeline)
        return answer
