"""Predicted stage times held against observed ones while a plan serves: how far the cost model is off, and a factor for each node.

Once in each window of the gateway's figures, what the stages took is compared with what the cost model without factors says of the nodes as
they were. What was learned is kept in status.calibration, so that a restart forgets nothing, and a node that was left for being slow is not
taken for a quick one when the last measurement has passed out of some window.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from datetime import datetime
from statistics import fmean, median
from typing import Any

from pydantic import ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from splitinference.controller.plan_io.serving import Serving, Stage
from splitinference.core.cost.fitting.calibrate import TELLING_MS, StageObservation, calibrate, decode_compute_ms, prefill_compute_ms
from splitinference.core.cost.fitting.learn import Factor, calibrated, learn
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Engine
from splitinference.core.values.value import Value
from splitinference_protocol.report import ObservedTraffic

LEAST_STEPS = 20
"""A window with fewer decode steps of a stage is not learned from: its median is chance."""
LEAST_PROMPTS = 5
"""And so many prompts that were computed alone."""
MOST_USED = 0.6
"""Where others use more of a node, nothing is learned of it: a small error in what they use would be a large one in the factor."""
SHARED = 0.25
"""And from here on only that it is slower than it counts as."""
STEADY = 1.25
"""What others leave may have changed by this factor within a window; where it changed more, the mean says little of the window."""
MOST_PROMPT_TOKENS = 1_000_000
"""A longer piece of a prompt is not believed."""
Prompts = Sequence[tuple[Stage, float, int]]
"""Of stages: milliseconds for each token of a prompt, and tokens of it."""
LONGEST_MS = 3.6e6
"""An hour for one decode step of one stage: what is said to take longer is not believed."""


class _Written(Value):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore")


class StageError(_Written):
    """One stage at the end of the last window: compute of one decode step, in ms; predicted with the factors as they were, and without."""

    node: str
    observed_ms: float
    predicted_ms: float
    uncalibrated_ms: float


class Window(_Written):
    """The window under way: since when, on which route, and what others used of its nodes then, where that was known."""

    since: datetime
    revision: str
    utilization: Mapping[str, float]


class Calibration(_Written):
    """What is kept in status.calibration. `model`: digest, dtype and engine of the model; errors are of the last window, in per cent."""

    model: str = ""
    revision: str = Field(default="", description="the route that was measured last")
    windows: int = Field(default=0, ge=0, description="windows in which all stages of that route had enough steps")
    nodes: Mapping[str, Factor] = Field(default_factory=dict, description="factors of decode steps")
    prefill_nodes: Mapping[str, Factor] = Field(default_factory=dict, description="factors of prefills")
    window: Window | None = None
    time: datetime | None = None
    stages: Mapping[str, StageError] = Field(default_factory=dict)
    error_percent: float | None = Field(default=None, description="mean absolute error of predicted stage times, with the factors")
    uncalibrated_error_percent: float | None = None

    def applied_to(self, snapshot: Snapshot, now: datetime) -> Snapshot:
        """The snapshot with the factors that count."""
        return calibrated(snapshot, self.nodes, now, self.prefill_nodes)

    def measured(self, serving: Serving | None) -> int:
        """Windows in which all stages of this route were measured; 0 on the way to a plan."""
        return self.windows if serving is not None and serving.revision == self.revision else 0

    def as_status(self) -> dict[str, Any]:
        """As JSON; empty where nothing is known."""
        dumped: dict[str, Any] = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return dumped if set(dumped) - {"model"} else {}


def read_calibration(status: Mapping[str, Any]) -> Calibration:
    """From the status; empty where there is none, or none that can be read."""
    try:
        return Calibration.model_validate(status.get("calibration") or {})
    except ValidationError:
        return Calibration()


def compare(known: Calibration, serving: Serving | None, problem: Problem, now: datetime) -> tuple[Calibration, tuple[str, ...]]:
    """What is known after this pass, and what was not believed, in words. `problem`: as things are now, with no factors in it."""
    profile = problem.profile
    model = f"{profile.digest}/{profile.dtype}" + ("" if profile.engine is Engine.TORCH else f"/{profile.engine}")
    if known.model != model:
        known = Calibration(model=model)
    if serving is None or serving.traffic is None:
        return known.model_copy(update={"window": None}), ()
    notes = tuple(_doubts(serving, serving.traffic))
    seen = _believed(serving, serving.traffic)
    if not seen:
        return known.model_copy(update={"window": None}), notes
    window = known.window
    if window is None or window.revision != serving.revision or window.since > now:
        return known.model_copy(update={"window": _window(serving, problem, now)}), notes
    if (now - window.since).total_seconds() < max(1.0, serving.traffic.window_seconds):
        return known, notes
    closed = _closed(known, window, seen, tuple(_prompts(serving)), problem=problem, now=now)
    counted = {"revision": serving.revision, "windows": known.measured(serving) + 1} if len(seen) == len(serving.stages) else {}
    return closed.model_copy(update={"window": _window(serving, problem, now), **counted}), notes


def _doubts(serving: Serving, traffic: ObservedTraffic) -> Iterator[str]:
    for stage in serving.stages:
        found = traffic.stages.get(stage.name)
        if found is not None and not _believable(found.compute_ms):
            what = "no number" if found.compute_ms is None else f"{found.compute_ms:g} ms"
            yield f"compute time of segment {stage.name} is {what}, which is implausible and ignored"


def _believable(milliseconds: float | None) -> bool:
    return milliseconds is not None and 0 < milliseconds <= LONGEST_MS


def _believed(serving: Serving, traffic: ObservedTraffic) -> dict[str, tuple[Stage, float]]:
    """Stages with enough steps in the window, and what one took."""
    found = {}
    for stage in serving.stages:
        times = traffic.stages.get(stage.name)
        if times is not None and times.compute_ms is not None and _believable(times.compute_ms) and (times.steps or 0) >= LEAST_STEPS:
            found[stage.name] = (stage, times.compute_ms)
    return found


def _prompts(serving: Serving) -> Iterator[tuple[Stage, float, int]]:
    """Stages with enough prompts in the window: milliseconds for each token, and tokens of a prompt, in the median."""
    for stage in serving.stages:
        times = serving.traffic.stages.get(stage.name) if serving.traffic is not None else None
        if times is None or times.prompt_ms_per_token is None or (times.prompts or 0) < LEAST_PROMPTS:
            continue
        tokens = round(times.prompt_tokens or 0)
        if 1 <= tokens <= MOST_PROMPT_TOKENS and _believable(tokens * times.prompt_ms_per_token):
            yield stage, times.prompt_ms_per_token, tokens


def _used(problem: Problem) -> dict[str, float | None]:
    return {node.name: node.utilization for node in problem.snapshot.nodes}


def _window(serving: Serving, problem: Problem, now: datetime) -> Window:
    names = {stage.node for stage in serving.stages}
    # What is not known is left out: a null in a merge patch means "remove", and would be written again in every pass.
    known = {name: round(share, 3) for name, share in sorted(_used(problem).items()) if share is not None and name in names}
    return Window(since=now, revision=serving.revision, utilization=known)


def _closed(
    known: Calibration, window: Window, seen: Mapping[str, tuple[Stage, float]], prompts: Prompts, *, problem: Problem, now: datetime
) -> Calibration:
    """With the errors of this window, and what is to be learned from it. Where a node's use by others is not known, nothing is said."""
    used = _used(problem)
    ends = {node: (window.utilization.get(node), used.get(node)) for node in {stage.node for stage, _ in seen.values()}}
    means = {node: (before + after) / 2 for node, (before, after) in ends.items() if before is not None and after is not None}
    steady = {node for node in means if _steady(*ends[node])}
    plain = _with_use(problem, means)
    with_factors = plain.model_copy(update={"snapshot": known.applied_to(plain.snapshot, now)})
    stages: dict[str, StageError] = {}
    observed: list[StageObservation] = []
    for name, (stage, milliseconds) in sorted(seen.items()):
        without, predicted = _compute_ms(plain, stage), _compute_ms(with_factors, stage)
        if without is None or predicted is None or without < TELLING_MS or stage.node not in means:
            continue
        times = {"observed_ms": milliseconds, "predicted_ms": predicted, "uncalibrated_ms": without}
        stages[name] = StageError(node=stage.node, **{key: round(value, 3) for key, value in times.items()})
        if stage.node in steady:
            where = {"node": stage.node, "processor": stage.processor, "start": stage.start, "end": stage.end}
            observed.append(StageObservation.model_validate({**where, "decode_ms": milliseconds}))
    if not stages:
        return known
    measured = calibrate(plain, observed).factors if observed else {}
    shared = {node for node, used in means.items() if used > SHARED}
    return known.model_copy(
        update={
            "nodes": learn(known.nodes, measured, now, shared),
            "prefill_nodes": learn(known.prefill_nodes, _prefill_ratios(plain, prompts, steady), now, shared),
            "time": now,
            "stages": stages,
            "error_percent": _percent((s.predicted_ms, s.observed_ms) for s in stages.values()),
            "uncalibrated_error_percent": _percent((s.uncalibrated_ms, s.observed_ms) for s in stages.values()),
        }
    )


def _prefill_ratios(plain: Problem, prompts: Prompts, steady: Set[str]) -> dict[str, float]:
    """By place the median of measured over predicted time of a prompt as long as those that were seen."""
    found: dict[str, list[float]] = defaultdict(list)
    for stage, each, tokens in prompts:
        predicted = prefill_compute_ms(plain, (stage.node, stage.processor), (stage.start, stage.end), tokens)
        if stage.node in steady and predicted is not None and predicted >= TELLING_MS:
            found[stage.place].append(each * tokens / predicted)
    return {place: median(ratios) for place, ratios in found.items()}


def _steady(before: float | None, after: float | None) -> bool:
    if before is None or after is None or max(before, after) > MOST_USED:
        return False
    return max(1 - before, 1 - after) <= STEADY * min(1 - before, 1 - after)


def _with_use(problem: Problem, means: Mapping[str, float]) -> Problem:
    """The problem with these nodes as busy as this."""
    nodes = tuple(n.model_copy(update={"utilization": means[n.name]}) if n.name in means else n for n in problem.snapshot.nodes)
    return problem.model_copy(update={"snapshot": problem.snapshot.model_copy(update={"nodes": nodes})})


def _compute_ms(problem: Problem, stage: Stage) -> float | None:
    return decode_compute_ms(problem, stage.node, stage.processor, stage.start, stage.end)


def _percent(pairs: Iterator[tuple[float, float]]) -> float:
    """Mean absolute error of (expected, observed), in per cent of what was observed."""
    return round(100 * fmean(abs(expected - observed) / observed for expected, observed in pairs), 1)
