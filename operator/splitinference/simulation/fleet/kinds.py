"""Kinds of pipelines of a mixed fleet: each is planned by the solver on nodes of one kind, and its figures are the cost model's."""

from dataclasses import dataclass
from functools import lru_cache

from splitinference.core.cost.evaluate import evaluate
from splitinference.core.cost.start import Start, starting_seconds
from splitinference.core.planner import Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import LinkQuality, Network, Node, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Workload
from splitinference.core.values.result import Limits
from splitinference.simulation.traces.models import LLAMA_8B, profile_of

GIB = 2**30
MOST_BUSY = 0.85
"""As the operator's autoscaler has it (`core/cost/carry.py`)."""
LOW_CLOCK_SPEED, LOW_CLOCK_POWER, LOW_CLOCK_DECODE = 0.7, 0.62, 0.97
"""At locked low clocks: speed of prefills and of decode steps, and share of the power above idle. Published measurements of locked clocks
say 32 to 42 % less energy in decode, which is bound by memory."""
_START = Start(clock_s=20.0, work_s=5.0, load_bytes_per_s=1e9)
_LENGTHS = (1024, 256)


@dataclass(frozen=True)
class Product:
    """Nodes of one kind. Watts and prices are assumptions: the device's own limit with a share of its host, and usual prices on demand."""

    name: str
    flops_per_s: float
    bandwidth: float
    memory_gib: int
    watts: float
    cost: float
    nodes: int
    each: int


PRODUCTS = (
    Product("h100", 989e12, 3350e9, 80, 900, 6.9, nodes=12, each=1),
    Product("a100", 312e12, 2039e9, 80, 550, 3.7, nodes=24, each=1),
    Product("l40s", 362e12, 864e9, 48, 430, 1.9, nodes=32, each=1),
    Product("l4 pair", 121e12, 300e9, 24, 110, 0.8, nodes=64, each=2),
)
"""`each`: nodes of one pipeline; the solver decides the cut."""


@dataclass(frozen=True)
class Slo:
    """First token within `first_s` and `per_prompt_token_s` for each token of the prompt; each further token within `token_s`."""

    first_s: float = 2.0
    per_prompt_token_s: float = 0.002
    token_s: float = 0.1

    def first(self, prompt_tokens: float) -> float:
        """Seconds that the first token may take."""
        return self.first_s + self.per_prompt_token_s * prompt_tokens


@dataclass(frozen=True)
class Kind:
    """A pipeline without load. Seconds for each token of a prompt and of an answer: until it is there, and for which the busiest place is
    taken. `count`: how many such pipelines there can be."""

    name: str
    prompt_s: float
    prompt_busy_s: float
    token_s: float
    token_busy_s: float
    idle_watts: float
    busy_watts: float
    cost: float
    start_s: float
    count: int

    def work_s(self, prompt: float, output: float, low_clock: bool = False) -> float:
        """Seconds for which a request takes the busiest place."""
        slower = (LOW_CLOCK_SPEED, LOW_CLOCK_DECODE) if low_clock else (1.0, 1.0)
        return prompt * self.prompt_busy_s / slower[0] + output * self.token_busy_s / slower[1]

    def carries(self, prompt: float, output: float, slo: Slo, low_clock: bool = False) -> float:
        """Requests per second within the SLO; 0 where not even one is."""
        speed, decode = (LOW_CLOCK_SPEED, LOW_CLOCK_DECODE) if low_clock else (1.0, 1.0)
        busy = min(MOST_BUSY, 1 - self.token_s / decode / slo.token_s, 1 - prompt * self.prompt_s / speed / slo.first(prompt))
        return max(0.0, busy) / self.work_s(prompt, output, low_clock)

    def watts(self, busy: float, low_clock: bool = False) -> float:
        """Watts at this share of time."""
        return self.idle_watts + busy * (self.busy_watts - self.idle_watts) * (LOW_CLOCK_POWER if low_clock else 1.0)


@lru_cache(maxsize=1)
def kinds() -> tuple[Kind, ...]:
    """All kinds, each planned by the solver for an 8B model in bfloat16 with batches of 16."""
    return tuple(_kind(product) for product in PRODUCTS)


def _kind(product: Product) -> Kind:
    nodes = tuple(
        Node(
            name=f"{product.name}-{number}",
            memory_free_bytes=product.memory_gib * GIB,
            flops_per_s=product.flops_per_s * 0.5,
            memory_bandwidth_bytes_per_s=product.bandwidth * 0.7,
            utilization=0.0,
            idle_watts=0.25 * product.watts,
            busy_watts=product.watts,
            cost_per_hour=product.cost,
        )
        for number in range(product.each)
    )
    prompt, output = _LENGTHS
    problem = Problem(
        profile=profile_of(LLAMA_8B),
        snapshot=Snapshot(nodes=nodes, network=Network(default=LinkQuality(bandwidth_bytes_per_s=3.1e9, rtt_ms=0.1))),
        workload=Workload(prompt_tokens=prompt, output_tokens=output, max_context_tokens=2048, max_concurrent_sequences=16, batch=16),
    )
    if product.each > 1:
        bounds = problem.constraints.model_copy(update={"min_segments": product.each})
        problem = problem.model_copy(update={"constraints": bounds})
    answer = solve(problem, Limits(seconds=20))
    if not isinstance(answer, Solved):
        raise ValueError(f"no plan for {product.name}: {answer}")
    plan: Plan = answer.plan
    chain = evaluate(plan, problem).chains[0]
    return Kind(
        name=product.name,
        prompt_s=chain.time_to_first_token_ms / 1e3 / prompt,
        prompt_busy_s=max(stage.prefill_ms for stage in chain.stages) / 1e3 / prompt,
        token_s=chain.time_per_output_token_ms / 1e3,
        token_busy_s=max(stage.decode_ms for stage in chain.stages) / 1e3 / problem.workload.batch,
        idle_watts=sum(node.idle_watts for node in nodes),
        busy_watts=sum(node.busy_watts for node in nodes),
        cost=sum(node.cost_per_hour for node in nodes),
        start_s=starting_seconds(plan, problem, _START)[0],
        count=product.nodes // product.each,
    )
