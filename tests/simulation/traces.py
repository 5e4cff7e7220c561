"""Small traces, written short: a few nodes, a model of equal layers, minutes of time."""

from datetime import timedelta
from typing import Any

from splitinference.core.decide.base.policy import Policy
from splitinference.core.values.problem import Constraints, Slo, TrustRule, Workload
from splitinference.simulation.traces.trace import Event, Trace
from tests.core.planning import a_node, a_problem, a_profile

TRUST = {"trusted": "true"}
POLICY = Policy(
    window=timedelta(seconds=60), cooldown=timedelta(minutes=5), review=timedelta(seconds=60), load_bytes_per_s=100e6, start_seconds=2
)


def a_trace(*events: Event, nodes: int = 4, minutes: float = 20, rate: float = 0.2, untrusted: str = "", **more: Any) -> Trace:
    """Nodes a, b, c, ... of 100, 99, 98, ... GFLOP/s; each holds half of the model and a bit; the first layer needs trust.

    The later a node's name, the slower it is, so the best plan is on a and b. One node is not trusted, the last unless
    another is named.
    """
    names = "abcdefgh"[:nodes]
    placed = [a_node(n, mib=280, gflops=100 - i, labels={} if n == (untrusted or names[-1]) else TRUST) for i, n in enumerate(names)]
    bounds = {"constraints": Constraints(trust=(TrustRule(start=0, end=1, labels=TRUST),)), "slo": Slo(time_per_output_token_ms=20)}
    problem = a_problem(
        *placed,
        profile=a_profile(),
        workload=Workload(prompt_tokens=32, output_tokens=32, max_context_tokens=128, max_concurrent_sequences=4),
        **{**bounds, **more},
    )
    return Trace(
        name="small", duration_s=minutes * 60, problem=problem, adaptation=POLICY, requests_per_s=rate, lengths_spread=0.5, events=events
    )
