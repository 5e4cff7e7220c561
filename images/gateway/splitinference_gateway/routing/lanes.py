"""Pipelines as the gateway uses them: what is in flight on each, how quick it was lately, and where a new sequence would end first."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from splitinference_protocol.route import Pipeline

_RECENT = 0.1
"""Weight of the newest measurement in a mean."""
_USUAL_TOKENS = 128.0
"""Tokens of an answer until answers have been seen."""


@dataclass
class Pace:
    """How quick a pipeline was lately; None: not measured. `busy`: so many sequences were in flight on it meanwhile, in the mean."""

    token_seconds: float | None = None
    prompt_seconds: float | None = None
    busy: float = 1.0

    def decoded(self, seconds: float, in_flight: int) -> None:
        """One decode step of one of so many sequences."""
        if self.token_seconds is None:
            self.token_seconds, self.busy = seconds, float(in_flight)
        self.token_seconds += _RECENT * (seconds - self.token_seconds)
        self.busy += _RECENT * (in_flight - self.busy)

    def prefilled(self, seconds: float, tokens: int) -> None:
        """A step of several tokens of a prompt."""
        each = seconds / tokens
        self.prompt_seconds = each if self.prompt_seconds is None else self.prompt_seconds + _RECENT * (each - self.prompt_seconds)


@dataclass(eq=False)
class Lane:
    """One pipeline of the routes that are known. `reserved`: tokens of KV that its sequences may grow to."""

    pipeline: Pipeline
    in_flight: int = 0
    reserved: int = 0
    pace: Pace = field(default_factory=Pace)

    @property
    def name(self) -> str:
        """The name of the first segment: it stays while the pipeline does, whatever its number."""
        return self.pipeline[0].segment


@dataclass(frozen=True)
class Wish:
    """What a sequence needs of a pipeline. `tokens`: those that have to run before the first one is sampled; `most`: tokens that it may
    grow to, 0 where it keeps no KV; `held`: how many of its tokens a pipeline is believed to hold; `left`: the lane that it leaves because
    something failed there."""

    tokens: int = 0
    most: int = 0
    held: Callable[[Pipeline], int] = lambda pipeline: 0
    left: Lane | None = None


@dataclass
class Chooser:
    """Chooses lanes. `kv_tokens`: tokens of KV that one pipeline has for this gateway, None where that does not count."""

    kv_tokens: int | None = None
    answer_tokens: float = _USUAL_TOKENS

    def answered(self, tokens: int) -> None:
        """A sequence ended after so many sampled tokens."""
        self.answer_tokens += _RECENT * (tokens - self.answer_tokens)

    def best(self, lanes: Sequence[Lane], wish: Wish, avoid: Collection[str] = ()) -> Lane:
        """The lane where the sequence would end first: of those that do not fail, with room for its KV. Where none is like that, the one
        that comes next to it. `avoid`: segments that fail now; `lanes` must not be empty."""
        usual = self._usual(lanes)

        def order(lane: Lane) -> tuple[bool, bool, bool, float, int]:
            fails = any(hop.segment in avoid for hop in lane.pipeline)
            full = self.kv_tokens is not None and lane.reserved + wish.most > self.kv_tokens
            return fails, lane is wish.left, full, self._seconds(lane, wish, usual), lane.in_flight

        return min(lanes, key=order)

    def _usual(self, lanes: Sequence[Lane]) -> Pace:
        """The mean pace of those that were measured: what is expected of a lane that was not."""
        known = [lane.pace for lane in lanes if lane.pace.token_seconds is not None]
        prompts = [pace.prompt_seconds for pace in known if pace.prompt_seconds is not None]
        if not known:
            return Pace(0.0, 0.0)
        tokens = fmean(pace.token_seconds or 0.0 for pace in known)
        return Pace(tokens, fmean(prompts) if prompts else 0.0, fmean(pace.busy for pace in known))

    def _seconds(self, lane: Lane, wish: Wish, usual: Pace) -> float:
        """Expected time to the end: prompt and answer at the pace of late, longer or shorter as the lane is busier or idler than then.

        With n sequences in flight besides ours and a mean of m while the pace was measured, times count (n + 1) / (m + 1). So a lane that
        was slow because it was busy is tried again once it is idle, and lanes whose times do not depend on their load share it.
        """
        pace = lane.pace if lane.pace.token_seconds is not None else usual
        prompt = usual.prompt_seconds if pace.prompt_seconds is None else pace.prompt_seconds
        answer = min(self.answer_tokens, wish.most - wish.tokens) if wish.most > wish.tokens else self.answer_tokens
        seconds = max(0, wish.tokens - wish.held(lane.pipeline)) * (prompt or 0.0) + answer * (pace.token_seconds or 0.0)
        return seconds * (lane.in_flight + 1) / (pace.busy + 1)
