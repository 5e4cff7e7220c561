"""What a sequence does about its failures: how long it pauses, and when it gives up."""

import random
import time

from splitinference_gateway.errors import ApiError, invalid, overloaded
from splitinference_gateway.pipeline.step_answers import STALLED, StepError
from splitinference_protocol.wire.errors import BAD_REQUEST, DEADLINE_EXCEEDED, INTERNAL, KV_FULL, KV_MISSING, OVERLOADED

_SHORTEST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 2.0
_MOST_INTERNAL_ERRORS = 4  # a fault in the numbers comes back at every replay: do not spend the whole replay time on it
_PATIENT = 5.0  # a sequence that has begun waits so much longer for room: those that have it end one after the other


class Mending:
    """Failures of one sequence since its last token: how long to pause, and when to give up."""

    def __init__(self, replay_seconds: float) -> None:
        self._limit = replay_seconds
        self._since: float | None = None
        self._failures = 0
        self._internal = 0
        self.stalls = 0

    def progress(self) -> None:
        self._since, self._failures, self._internal, self.stalls = None, 0, 0, 0

    def pause_after(self, failure: StepError, *, elsewhere: bool = False, begun: bool = False) -> float:
        """Seconds to wait before the next try; lost KV is mended at once the first time, and so is all where there is another pipeline
        (`elsewhere`). A sequence that has `begun` waits longer for room: it may have come from a pipeline that is no more.

        Raises:
            ApiError: it cannot be mended, or not within the limit.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._failures += 1
        self._internal += failure.code == INTERNAL
        self.stalls += failure.code in (STALLED, DEADLINE_EXCEEDED)
        if failure.code == BAD_REQUEST:
            raise invalid(f"The model refused the request: {failure.message}", code="bad_request") from failure
        limit = self._limit * (_PATIENT if begun and failure.code in (KV_FULL, OVERLOADED) else 1.0)
        if now - self._since >= limit or self._internal >= _MOST_INTERNAL_ERRORS:
            raise self._gave_up(failure, now - self._since) from failure
        if self._failures == 1 and (elsewhere or failure.code == KV_MISSING):
            return 0.0
        pause = min(_LONGEST_PAUSE_SECONDS, _SHORTEST_PAUSE_SECONDS * 2.0 ** min(10, self._failures - 1))
        return float(min(pause * random.uniform(0.75, 1.25), max(0.0, self._since + limit - now)))

    def _gave_up(self, failure: StepError, seconds: float) -> ApiError:
        if failure.code in (KV_FULL, OVERLOADED):
            return overloaded(f"The model's capacity is taken ({failure.code}); tried for {seconds:.0f} s.", failure.code)
        return ApiError(
            503,
            f"The model's chain of segments is broken and was not mended within {seconds:.0f} s: {failure}.",
            kind="server_error",
            code=failure.code,
            retry_after=2,
        )
