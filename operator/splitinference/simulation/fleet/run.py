"""A trace of requests over a fleet, as a fluid in short steps: what each controller spends, and how many requests it serves within the SLO.

In each step the pipelines that serve share what arrives by what each carries. A place that is busy for the share u of its time takes
1 / (1 - u) as long for each request (processor sharing), and what does not fit waits. The mean counts, not the spread within a step.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from splitinference.core.values.value import Value
from splitinference.simulation.fleet.controllers import Controller, Counts, Fleet, Seen
from splitinference.simulation.fleet.kinds import Kind, Slo, kinds
from splitinference.simulation.fleet.request_traces import BLOCK_TOKENS, Group

CARBON_G_PER_KWH = 400.0
"""A constant: the traces say neither where nor when they were served."""
_FULL = 0.98
_BLOCK_GIB = 0.0625
"""KV of a block of 512 tokens of the 8B model in bfloat16."""
_CACHE_GIB = {"h100": 40.0, "a100": 40.0, "l40s": 20.0}
"""For prefixes, of what weights and running sequences leave."""


class FleetReport(Value):
    """What a controller did. `within_slo`: share of the requests; `moves`: pipelines started or ended; `reuse`: share of the prompts'
    blocks that were held already (None: the trace has no hashes)."""

    policy: str
    requests: float
    within_slo: float
    energy_kwh: float
    cost: float
    carbon_kg: float
    moves: int
    mean_pipelines: float
    reuse: float | None = None


@dataclass
class _Pipeline:
    """One that serves from `ready_s` on. `held`: blocks by age; `tokens`: work given in this step."""

    kind: int
    ready_s: float
    room: int
    held: OrderedDict[int, None] = field(default_factory=OrderedDict)
    given: float = 0.0

    def reused(self, blocks: Sequence[int]) -> int:
        """How many blocks from the beginning are held."""
        return next((number for number, block in enumerate(blocks) if block not in self.held), len(blocks))

    def take(self, blocks: Sequence[int]) -> None:
        """Hold these, and let go of what was used longest ago."""
        for block in blocks:
            self.held[block] = None
            self.held.move_to_end(block)
        while len(self.held) > self.room:
            self.held.popitem(last=False)


@dataclass
class _Sums:
    requests: float = 0.0
    good: float = 0.0
    joules: float = 0.0
    cost: float = 0.0
    moves: int = 0
    pipeline_s: float = 0.0
    blocks: int = 0
    reused: int = 0


def peak_of(groups: Sequence[Group]) -> Seen:
    """The minute with the most requests, and the mean lengths of all."""
    minutes: dict[int, float] = {}
    for group in groups:
        minutes[int(group.at_s // 60)] = minutes.get(int(group.at_s // 60), 0.0) + group.count
    count = math.fsum(group.count for group in groups)
    prompt = math.fsum(group.count * group.prompt_tokens for group in groups) / count
    output = math.fsum(group.count * group.output_tokens for group in groups) / count
    return Seen(0.0, max(minutes.values()) / 60.0, prompt, output, 0.0)


def simulate_fleet(groups: Sequence[Group], every_s: float, controller: Controller, slo: Slo = Slo()) -> FleetReport:  # noqa: B008
    """One controller on one trace, from the first request to the last. The first decision serves at once: nobody starts cold."""
    fleet = Fleet(kinds(), slo, peak_of(groups))
    run = _Run(fleet, controller, every_s)
    pending = deque(groups)
    now_s, end_s = 0.0, groups[-1].at_s + every_s
    while now_s < end_s:
        step: list[Group] = []
        while pending and pending[0].at_s < now_s + every_s:
            step.append(pending.popleft())
        run.step(now_s, step)
        now_s += every_s
    sums = run.sums
    return FleetReport(
        policy=controller.name,
        requests=round(sums.requests),
        within_slo=sums.good / sums.requests,
        energy_kwh=sums.joules / 3.6e6,
        cost=sums.cost,
        carbon_kg=sums.joules / 3.6e6 * CARBON_G_PER_KWH / 1e3,
        moves=sums.moves,
        mean_pipelines=sums.pipeline_s / end_s,
        reuse=sums.reused / sums.blocks if sums.blocks else None,
    )


class _Run:
    """The state of one run."""

    def __init__(self, fleet: Fleet, controller: Controller, every_s: float) -> None:
        self.fleet, self.controller, self.every_s = fleet, controller, every_s
        self.sums = _Sums()
        self._pipelines: list[_Pipeline] = []
        self._waiting = 0.0
        self._lately: deque[tuple[float, float, float, float]] = deque()
        self._lengths = (fleet.peak.prompt_tokens, fleet.peak.output_tokens)

    def step(self, now_s: float, groups: Sequence[Group]) -> None:
        """Decide by what was seen before, then serve what arrives."""
        low = self._decide(now_s, groups)
        serving = [one for one in self._pipelines if one.ready_s <= now_s]
        self._serve(serving, [self._shortened(serving, group) for group in groups], low)
        count = math.fsum(group.count for group in groups)
        prompt = math.fsum(group.count * group.prompt_tokens for group in groups)
        self._lately.append((now_s, count, prompt, math.fsum(group.count * group.output_tokens for group in groups)))

    def _decide(self, now_s: float, groups: Sequence[Group]) -> bool:
        first = not self._pipelines
        if first:
            rate = math.fsum(group.count for group in groups) / self.every_s
            seen = Seen(now_s, max(rate, 0.01), *self._lengths, 0.0)
        else:
            span = max(60.0, self.every_s)
            while self._lately and self._lately[0][0] < now_s - span:
                self._lately.popleft()
            count, prompt, output = (math.fsum(row[i] for row in self._lately) for i in (1, 2, 3))
            if count > 0:
                self._lengths = (prompt / count, output / count)
            seen = Seen(now_s, count / min(span, max(now_s, self.every_s)), *self._lengths, self._waiting)
        wanted, low = self.controller.look(self.fleet, seen, self._counts())
        self._become(wanted, now_s, first)
        return low

    def _counts(self) -> Counts:
        return tuple(sum(one.kind == kind for one in self._pipelines) for kind in range(len(self.fleet.kinds)))

    def _become(self, wanted: Counts, now_s: float, first: bool) -> None:
        """Start what is missing; end the newest in excess, but nothing that serves while what takes its place still starts."""
        for number, (kind, there) in enumerate(zip(self.fleet.kinds, self._counts(), strict=True)):
            for _ in range(wanted[number] - there):
                room = int(_CACHE_GIB.get(kind.name, 8.0) / _BLOCK_GIB)
                self._pipelines.append(_Pipeline(number, now_s if first else now_s + kind.start_s, room))
                self.sums.moves += not first
        if any(one.ready_s > now_s for one in self._pipelines):
            return
        for number, there in enumerate(self._counts()):
            for _ in range(there - wanted[number]):
                last = max(index for index, one in enumerate(self._pipelines) if one.kind == number)
                del self._pipelines[last]
                self.sums.moves += 1

    def _shortened(self, serving: Sequence[_Pipeline], group: Group) -> Group:
        """The group without what a pipeline holds of its prompt; where it goes is decided here."""
        if not group.blocks or not serving:
            return group
        least = min(one.given for one in serving)
        near = [one for one in serving if one.given <= least + 4 * group.prompt_tokens]
        idle = min(near, key=lambda one: one.given)
        chosen = max(near, key=lambda one: (one.reused(group.blocks), -one.given)) if self.controller.keeps_prefixes else idle
        reused = min(chosen.reused(group.blocks), (group.prompt_tokens - 1) // BLOCK_TOKENS)
        self.sums.blocks += len(group.blocks)
        self.sums.reused += reused
        chosen.take(group.blocks)
        chosen.given += group.prompt_tokens - reused * BLOCK_TOKENS
        return Group(group.at_s, group.count, group.prompt_tokens - reused * BLOCK_TOKENS, group.output_tokens)

    def _serve(self, serving: Sequence[_Pipeline], groups: Sequence[Group], low: bool) -> None:
        """Share the step's requests, and count what it takes. What starts draws idle power and costs as much as what serves."""
        known, slo = self.fleet.kinds, self.fleet.slo
        count = math.fsum(group.count for group in groups)
        prompt = math.fsum(g.count * g.prompt_tokens for g in groups) / count if count else self._lengths[0]
        output = math.fsum(g.count * g.output_tokens for g in groups) / count if count else self._lengths[1]
        numbers = [sum(one.kind == kind for one in serving) for kind in range(len(known))]
        work = [kind.work_s(prompt, output, low) for kind in known]
        most = math.fsum(n * _FULL / w for n, w in zip(numbers, work, strict=True))
        wait_s = self._waiting / most if most else math.inf
        served = min(count + self._waiting, most * self.every_s)
        self._waiting += count - served
        weights = self._weights(numbers, work, (prompt, output), low)
        busy = [served / self.every_s * w * s / n if n else 0.0 for n, w, s in zip(numbers, work, weights, strict=True)]
        for kind, share, used in zip(known, weights, busy, strict=True):
            for group in groups if share else ():
                if _keeps(kind, group, min(used, _FULL), wait_s, slo, low=low):
                    self.sums.good += group.count * share
        self.sums.requests += count
        for one in self._pipelines:
            kind = known[one.kind]
            self.sums.joules += kind.watts(min(1.0, busy[one.kind]) if one in serving else 0.0, low) * self.every_s
            self.sums.cost += kind.cost * self.every_s / 3600
            one.given *= 0.5
        self.sums.pipeline_s += len(self._pipelines) * self.every_s

    def _weights(self, numbers: Sequence[int], work: Sequence[float], lengths: tuple[float, float], low: bool) -> list[float]:
        """Which share of the requests each kind gets: by what it carries within the SLO; where none carries any, by its speed."""
        parts = [n * kind.carries(*lengths, self.fleet.slo, low) for n, kind in zip(numbers, self.fleet.kinds, strict=True)]
        if not math.fsum(parts):
            parts = [n / w for n, w in zip(numbers, work, strict=True)]
        total = math.fsum(parts)
        return [part / total if total else 0.0 for part in parts]


def _keeps(kind: Kind, group: Group, used: float, wait_s: float, slo: Slo, *, low: bool) -> bool:
    """Whether requests of this group keep the SLO on a pipeline that is busy for this share."""
    stretched = 1.0 / (1.0 - used)
    prompt = group.prompt_tokens * kind.work_s(1, 0, low) / kind.work_s(1, 0) * kind.prompt_s
    token = kind.token_s * kind.work_s(0, 1, low) / kind.work_s(0, 1)
    return wait_s + prompt * stretched <= slo.first(group.prompt_tokens) and token * stretched <= slo.token_s
