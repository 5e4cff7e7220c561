"""One run: a trace, a policy, a seed; the same three always give the same report."""

from dataclasses import dataclass

import simpy

from splitinference.simulation.operator_pass import Operator
from splitinference.simulation.policies import Conduct, PolicyName, conduct
from splitinference.simulation.results.report import Report, Spent, report
from splitinference.simulation.system.gateway import Gateway
from splitinference.simulation.system.observation import Observation
from splitinference.simulation.system.places import Places
from splitinference.simulation.system.records import Records
from splitinference.simulation.system.routes import Routes
from splitinference.simulation.system.segments import Segments
from splitinference.simulation.system.world import Process, World
from splitinference.simulation.traces.trace import Trace

SAMPLE_S = 60.0
"""Utilization is sampled so often, as a mean over the time since the last sample."""


@dataclass(frozen=True)
class Simulation:
    """All parts of one run, ready to run: `env.run(until=seconds)` makes time pass."""

    env: simpy.Environment
    conduct: Conduct
    records: Records
    operator: Operator
    observation: Observation
    segments: Segments
    places: Places
    routes: Routes
    gateway: Gateway


def prepare(trace: Trace, policy: PolicyName, seed: int) -> Simulation:
    """The parts of a run with its first plan. Raises NoPlanError if there is no plan at the start."""
    env: simpy.Environment = simpy.Environment()
    chosen = conduct(policy, trace.adaptation)
    records = Records()
    operator = Operator(env, trace, chosen, records)
    world = World(env, trace)
    observation = Observation(env, trace, world, operator.wake)
    segments = Segments(env, trace, world, operator.wake)
    places = Places(trace, world)
    routes = Routes(env, segments, trace.serving.drain_s, operator.wake)
    gateway = Gateway(env, trace, world, places, routes, records=records, seed=seed)
    operator.start(observation, segments, routes, gateway, places)
    env.process(_sample(env, world, places, routes, records))
    return Simulation(env, chosen, records, operator, observation, segments, places, routes, gateway)


def simulate(trace: Trace, policy: PolicyName, seed: int) -> Report:
    """Run the trace from beginning to end. Raises NoPlanError if there is no plan at the start."""
    made = prepare(trace, policy, seed)
    made.env.run(until=trace.duration_s)
    joules = sum(place.joules for place in made.places.places.values())
    spent = Spent(loaded_bytes=made.segments.loaded_bytes, joules=joules, solved=made.conduct.solve.solved)
    return report(trace, policy.value, seed, made.records, spent)


def _sample(env: simpy.Environment, world: World, places: Places, routes: Routes, records: Records) -> Process:
    """Utilization of the nodes that serve, by others and by us: we take what others leave for as long as our work runs."""
    before: dict[str, float] = {}
    while True:
        yield env.timeout(SAMPLE_S)
        busy: dict[str, float] = {}
        for place in places.places.values():
            busy[place.node] = busy.get(place.node, 0.0) + place.busy_s
        if serving := sorted(routes.nodes):
            shares = []
            for node in serving:
                others = world.mean_utilization(node, env.now - SAMPLE_S, env.now)
                ours = min(1.0, (busy.get(node, 0.0) - before.get(node, 0.0)) / SAMPLE_S)
                shares.append(others + (1.0 - others) * ours)
            records.busiest.append(max(shares))
            records.serving.append(sum(shares) / len(shares))
        before = busy
