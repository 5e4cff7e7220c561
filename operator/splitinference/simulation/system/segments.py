"""Segment servers in the simulated cluster: they start, load, are proved, die with their node, start again, and leave."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import simpy

from splitinference.core.transition.state import NamedSegment, ObservedSegment, Phase, Target
from splitinference.core.values.plan import Plan, Segment
from splitinference.simulation.system.world import Process, World
from splitinference.simulation.traces.trace import Trace


@dataclass(eq=False)
class Run:
    """One segment server. `alive`: it answers steps."""

    named: NamedSegment
    segment: Segment
    phase: Phase = Phase.STARTING
    alive: bool = False
    life: int = 0


class Segments:
    """All segment servers, by name."""

    def __init__(self, env: simpy.Environment, trace: Trace, world: World, on_change: Callable[[], None]) -> None:
        """`on_change` is called whenever a segment gets into another phase."""
        self._env = env
        self._trace = trace
        self._world = world
        self._on_change = on_change
        self._loaded_at: dict[str, float] = {}
        self._on_disk: dict[str, set[int]] = {}
        self._segments: dict[str, Segment] = {}
        self.runs: dict[str, Run] = {}
        self.version = 0
        self.loaded_bytes = 0
        world.on_up.append(self._node_went)

    def target(self, plan: Plan) -> Target:
        """The plan as named segments. The names cover layers, place and model."""
        if plan.prediction is None:
            raise ValueError("the plan of a transition needs its prediction, which says what memory each segment takes")
        named = iter(zip(plan.segments, plan.prediction.stages, strict=True))
        pipelines = []
        for pipeline in plan.pipelines:
            stages = []
            for _ in pipeline.segments:
                segment, stage = next(named)
                start, end = segment.held
                name = "-".join(filter(None, (plan.model_digest[:8], str(start), str(end), segment.node, segment.processor)))
                self._segments[name] = segment
                stages.append(
                    NamedSegment(
                        name=name, start=start, end=end, node=segment.node, memory_bytes=stage.memory_bytes, family=plan.model_digest
                    )
                )
            pipelines.append(tuple(stages))
        return Target(pipelines=tuple(pipelines))

    def segment(self, name: str) -> Segment:
        """The plan's segment of a name that `target` gave."""
        return self._segments[name]

    def create(self, named: NamedSegment) -> None:
        """Make the segment; already there is success."""
        if named.name in self.runs:
            return
        run = self.runs[named.name] = Run(named, self._segments[named.name])
        self._changed()
        self._start(run)

    def delete(self, name: str) -> None:
        """Delete the segment; it stops answering at once and holds its memory for a moment. Not there is success."""
        run = self.runs.get(name)
        if run is None or run.phase is Phase.LEAVING:
            return
        run.phase, run.alive, run.life = Phase.LEAVING, False, run.life + 1
        self._changed()
        self._env.process(self._leave(run))

    def prove(self) -> None:
        """Run a token through each segment that is ready: those that answer are proved."""
        for run in self.runs.values():
            if run.phase is Phase.READY and run.alive:
                run.phase = Phase.PROVEN
                self.version += 1

    def observed(self, lost: Mapping[str, str], wanted: frozenset[str]) -> dict[str, ObservedSegment]:
        """What the operator sees. `lost`: nodes known to be lost, and why; a segment on one is hoped for only while it is `wanted`."""
        seen = {}
        for name, run in self.runs.items():
            phase, why = run.phase, ""
            if run.named.node in lost and phase is not Phase.LEAVING:
                phase, why = (Phase.STARTING if name in wanted else Phase.FAILED), lost[run.named.node]
            seen[name] = ObservedSegment(**run.named.model_dump(), phase=phase, why=why)
        return seen

    def _start(self, run: Run) -> None:
        if self._world.is_up(run.named.node):
            self._env.process(self._load(run))

    def _load(self, run: Run) -> Process:
        """Start the server and read the weights, as quickly as the node is when it begins; a node reads for one segment at a time."""
        life, node, serving = run.life, run.named.node, self._trace.serving
        layers = range(run.named.start, run.named.end)
        have = self._on_disk.setdefault(node, set())
        weights = self._trace.problem.profile.weight_bytes(run.named.start, run.named.end)
        away = 0 if serving.cached else sum(self._trace.problem.profile.layers[i].weight_bytes for i in layers if i not in have)
        there = self._world.nodes[node]
        reading = serving.start.load_s(there, weights) + away / serving.fetch_bytes_per_s
        begin = max(self._env.now, self._loaded_at.get(node, 0.0))
        self._loaded_at[node] = begin + reading
        yield self._env.timeout(begin - self._env.now + reading + serving.start.server_s(there))
        if run.life != life:
            return
        self.loaded_bytes += weights
        have.update(layers)
        run.phase, run.alive = Phase.READY, True
        self._changed()

    def _leave(self, run: Run) -> Process:
        yield self._env.timeout(self._trace.serving.delete_s)
        del self.runs[run.named.name]
        self._changed()

    def _node_went(self, node: str, up: bool) -> None:
        if not up:
            self._loaded_at.pop(node, None)
        for run in self.runs.values():
            if run.named.node != node or run.phase is Phase.LEAVING:
                continue
            if up:
                run.phase = Phase.STARTING
                self._start(run)
                self._changed()
            else:
                # Nobody is told: the operator goes on seeing what it saw last.
                run.alive, run.life = False, run.life + 1

    def _changed(self) -> None:
        self.version += 1
        self._on_change()
