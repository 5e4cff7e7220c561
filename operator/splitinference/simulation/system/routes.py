"""Routes of the simulated gateway: the serving one, those that drain, what is in flight on each, and which stages fail."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import simpy

from splitinference.core.transition.state import OldRoute, Phase, Route
from splitinference.simulation.system.segments import Run, Segments


@dataclass(eq=False)
class RouteState:
    """One route and what is on it. Sequences may stay until `ends_at`."""

    route: Route
    in_flight: int = 0
    ends_at: float = float("inf")
    paths: "tuple[Path, ...]" = ()
    paths_of: int = -1
    turn: int = 0


@dataclass(eq=False)
class Path:
    """One pipeline of a route, as the servers that it leads through."""

    runs: tuple[Run, ...]
    nodes: tuple[str, ...]
    state: RouteState

    @property
    def alive(self) -> bool:
        """Whether every stage answers."""
        return all(run.alive for run in self.runs)


class Routes:
    """The gateway's routes. `failing`: segments that steps cannot get past, since when (seconds)."""

    def __init__(self, env: simpy.Environment, segments: Segments, drain_s: float, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a route that was cut over from has drained, and when a stage begins to fail."""
        self._env = env
        self._segments = segments
        self._drain_s = drain_s
        self._on_change = on_change
        self._serving: RouteState | None = None
        self._old: dict[str, RouteState] = {}
        self.failing: dict[str, float] = {}

    @property
    def serving(self) -> Route | None:
        """The route that new sequences take."""
        return self._serving.route if self._serving else None

    @property
    def nodes(self) -> frozenset[str]:
        """Nodes that the serving route leads through."""
        names = self._serving.route.names if self._serving else frozenset[str]()
        return frozenset(self._segments.runs[name].named.node for name in names if name in self._segments.runs)

    @property
    def in_flight(self) -> int:
        """Sequences on all routes now."""
        return sum(state.in_flight for state in (*self._old.values(), *((self._serving,) if self._serving else ())))

    def cutover(self, route: Route) -> None:
        """New sequences take this route from now on; those on the other one have the drain time to end."""
        if self._serving is not None:
            if self._serving.route == route:
                return
            self._serving.ends_at = self._env.now + self._drain_s
            self._old[self._serving.route.revision] = self._serving
        self._serving = RouteState(route)

    def withdraw(self) -> None:
        """No sequence takes a step along the serving route any more; all wait for the next."""
        if self._serving is not None:
            self._serving.ends_at = self._env.now
            self._old[self._serving.route.revision] = self._serving
            self._serving = None

    def old_routes(self) -> tuple[OldRoute, ...]:
        """Routes that were cut over from; those with nothing in flight are forgotten with this answer."""
        found = tuple(
            OldRoute(revision=revision, names=state.route.names, in_flight=state.in_flight > 0, why=f"{state.in_flight} in flight")
            for revision, state in self._old.items()
        )
        self._old = {revision: state for revision, state in self._old.items() if state.in_flight}
        return found

    def enter(self) -> Path | None:
        """The next path of the serving route, with one more in flight; None where no path has all its stages alive."""
        state = self._serving
        if state is None:
            return None
        if state.paths_of != self._segments.version:
            # A segment that was made again has the old name and is another server.
            state.paths, state.paths_of = tuple(self._led(state)), self._segments.version
        for _ in state.paths:
            state.turn += 1
            path = state.paths[state.turn % len(state.paths)]
            if path.alive:
                state.in_flight += 1
                return path
            for run in path.runs:
                if not run.alive and run.phase is Phase.PROVEN:
                    self.fails(run, self._env.now)
        return None

    def leave(self, path: Path) -> None:
        """One less in flight."""
        path.state.in_flight -= 1
        if path.state.in_flight == 0 and path.state is not self._serving:
            self._on_change()

    def fails(self, run: Run, since: float) -> None:
        """Steps have not got past this stage since then."""
        if run.named.name not in self.failing:
            self.failing[run.named.name] = since
            self._on_change()

    def answered(self, path: Path) -> None:
        """A step came back from all stages of this path."""
        for run in path.runs if self.failing else ():
            self.failing.pop(run.named.name, None)

    def _led(self, state: RouteState) -> Iterator[Path]:
        """The pipelines of a route whose segments are all there."""
        runs = self._segments.runs
        for names in state.route.pipelines:
            if all(name in runs for name in names):
                yield Path(tuple(runs[name] for name in names), tuple(runs[name].named.node for name in names), state)
