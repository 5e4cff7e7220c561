"""The gateway: it admits requests, leads each sequence along a route token by token, and replays a sequence whose route broke or ended."""

from collections import deque
from collections.abc import Generator
from typing import Any

import simpy

from splitinference.core.cost.checks.eligible import forbidden
from splitinference.core.decide.base.policy import Traffic
from splitinference.simulation.system.arrivals import Arrival, arrivals
from splitinference.simulation.system.places import Places, rounded
from splitinference.simulation.system.records import Records, Request
from splitinference.simulation.system.routes import Path, Routes
from splitinference.simulation.system.segments import Run
from splitinference.simulation.system.stepping import Steps, quantile
from splitinference.simulation.system.world import Process, World
from splitinference.simulation.traces.trace import Trace

RETRY_S = 1.0
"""A sequence without a route looks for one so often."""

Answered = Generator[simpy.Event, Any, bool]


class Gateway:
    """Runs all requests of a trace."""

    def __init__(
        self, env: simpy.Environment, trace: Trace, world: World, places: Places, routes: Routes, *, records: Records, seed: int
    ) -> None:
        self._env = env
        self._trace = trace
        self._world = world
        self._places = places
        self._routes = routes
        self._records = records
        self._seats = simpy.Resource(env, capacity=trace.problem.workload.max_concurrent_sequences)
        self._ended: deque[float] = deque()
        self._first_tokens: deque[tuple[Steps, float]] = deque()
        self._gaps: deque[tuple[Steps, float]] = deque()
        self._moving = 0
        self._labels = 0
        world.on_label.append(self._count_labels)
        env.process(self._admit(seed))

    def traffic(self) -> Traffic:
        """What clients got lately: how many had their answer, and how long tokens took, those of answers under way too."""
        now = self._env.now
        since = now - self._trace.observing.traffic_window_s
        while self._ended and self._ended[0] < since:
            self._ended.popleft()
        return Traffic(
            requests=len(self._ended),
            time_to_first_token_ms=quantile(self._first_tokens, 0.95, since, now),
            time_per_output_token_ms=quantile(self._gaps, 0.95, since, now),
        )

    def _count_labels(self) -> None:
        self._labels += 1

    def _admit(self, seed: int) -> Process:
        for arrival in arrivals(self._trace, seed):
            yield self._env.timeout(arrival.at_s - self._env.now)
            request = self._records.arrived(arrival)
            if len(self._seats.queue) >= self._trace.serving.max_queue:
                self._records.failed(request, "refused: too many wait")
            else:
                self._env.process(self._serve(arrival, request))

    def _serve(self, arrival: Arrival, request: Request) -> Process:
        with self._seats.request() as seat:
            yield seat
            self._moving += 1
            whole = yield from self._generate(arrival, request)
            self._moving -= 1
        if not whole:
            self._records.failed(request, "no route for too long")
            return
        self._records.completed(request)
        self._ended.append(self._env.now)

    def _generate(self, arrival: Arrival, request: Request) -> Answered:
        """All tokens of one sequence, over as many routes as it takes. False: it had no route for too long."""
        path: Path | None = None
        labels, prefill, last = -1, True, self._env.now
        while request.tokens < arrival.output_tokens:
            if path is not None and (not path.alive or self._env.now >= path.state.ends_at):
                self._routes.leave(path)
                path = None
            if path is None:
                path = self._routes.enter()
                if path is None:
                    if self._env.now - last >= self._trace.serving.replay_s:
                        return False
                    yield self._env.timeout(RETRY_S)
                    continue
                labels, prefill = -1, True
                request.replays += 1 if request.tokens else 0
                yield self._env.timeout(self._places.enter(path.nodes[0], arrival.prompt_tokens + request.tokens))
            if labels != self._labels:
                labels = self._labels
                request.violates = request.violates or self._violates(path)
            answered = yield from self._tokens(path, arrival, request, prefill=prefill)
            prefill = False
            if answered:
                last = self._env.now
                self._routes.answered(path)
            else:
                self._routes.leave(path)
                path = None
        if path is not None:
            self._routes.leave(path)
        return True

    def _tokens(self, path: Path, arrival: Arrival, request: Request, *, prefill: bool) -> Answered:
        """One token through all stages, or several where nothing else happens meanwhile. False: a stage did not answer.

        The way back of one token and the way in of the next are one wait; the client has the token before it.
        """
        env, places = self._env, self._places
        width = arrival.prompt_tokens + request.tokens if prefill else 1
        length = rounded(width) if prefill else arrival.prompt_tokens
        enter = places.enter(path.nodes[0], 1)
        alone = self._moving == 1 and not prefill
        began = at = env.now
        for number, run in enumerate(path.runs):
            if not run.alive:
                return (yield from self._stalled(run))
            done = places.take(run.segment, at, length, arrival.output_tokens, prefill=prefill)
            if run is path.runs[-1]:
                at = done + places.answer(path.nodes) + enter
            else:
                at = places.send(path.nodes[number], path.nodes[number + 1], run.segment.end, width, done)
            if alone and at < env.peek():
                # Nothing happens before this step is done: no need to stop here.
                continue
            yield env.timeout(at - env.now)
            if not run.alive:
                return (yield from self._stalled(run))
        self._token(request, at - enter)
        if at > env.now:
            yield from self._ahead(path, arrival, request, at, at - began)
        return True

    def _ahead(self, path: Path, arrival: Arrival, request: Request, at: float, step_s: float) -> Process:
        """Further tokens, each as long as the last, up to the next event: a sequence alone in the system meets no queue."""
        count = arrival.output_tokens - request.tokens
        if self._env.peek() < float("inf"):
            count = max(0, min(count, int((self._env.peek() - at) / step_s) - 1))
        for run in path.runs:
            self._places.account(run.segment, arrival.prompt_tokens, arrival.output_tokens, Steps(at, at + count * step_s, count))
        enter = self._places.enter(path.nodes[0], 1)
        if count:
            self._gaps.append((Steps(at - enter, at - enter + count * step_s, count), 1e3 * step_s))
        for _ in range(count):
            at += step_s
            request.token(at - enter)
        yield self._env.timeout(at - self._env.now)

    def _token(self, request: Request, at: float) -> None:
        """A token reaches the client."""
        before = request.last_at if request.tokens else request.arrival.at_s
        (self._gaps if request.tokens else self._first_tokens).append((Steps.at(at), 1e3 * (at - before)))
        request.token(at)

    def _stalled(self, run: Run) -> Answered:
        """The step has no answer: a server that is gone says so at once, a dead node says nothing."""
        stall_s = self._trace.serving.stall_s
        if not self._world.is_up(run.named.node):
            yield self._env.timeout(stall_s)
            if not run.alive:
                self._routes.fails(run, self._env.now - stall_s)
        return False

    def _violates(self, path: Path) -> bool:
        """Whether a layer of this path runs on a node that must not have it."""
        bounds = self._trace.problem.constraints
        return bool(bounds.trust) and any(
            forbidden(self._world.nodes[run.named.node], layer, bounds)
            for run in path.runs
            for layer in range(run.segment.start, run.segment.end)
        )
