"""What happened, as it happens: requests, moves, and a sample of the utilization every minute."""

from dataclasses import dataclass, field

from splitinference.core.values.problem import Slo
from splitinference.simulation.system.arrivals import Arrival


@dataclass(slots=True, eq=False)
class Request:
    """One request as its client saw it."""

    arrival: Arrival
    tokens: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    longest_gap_s: float = 0.0
    replays: int = 0
    violates: bool = False
    why_failed: str = ""

    def token(self, at: float) -> None:
        """A token reached the client."""
        if self.tokens == 0:
            self.first_at = at
        else:
            self.longest_gap_s = max(self.longest_gap_s, at - self.last_at)
        self.tokens += 1
        self.last_at = at

    @property
    def first_token_ms(self) -> float:
        """From arrival to the first token."""
        return 1e3 * (self.first_at - self.arrival.at_s)

    @property
    def output_token_ms(self) -> float | None:
        """Mean time of the further tokens; None where there is only one."""
        return 1e3 * (self.last_at - self.first_at) / (self.tokens - 1) if self.tokens > 1 else None

    @property
    def latency_ms(self) -> float:
        """From arrival to the last token."""
        return 1e3 * (self.last_at - self.arrival.at_s)

    def keeps(self, slo: Slo) -> bool:
        """Whether the client got what the SLO promises."""
        first, each = slo.time_to_first_token_ms, slo.time_per_output_token_ms
        if first is not None and self.first_token_ms > first:
            return False
        return each is None or self.output_token_ms is None or self.output_token_ms <= each


@dataclass(frozen=True)
class Moved:
    """A plan was adopted. `mandatory`: it had to be. `bytes_`: weights that the plan asks to be loaded."""

    at_s: float
    change: str
    reason: str
    mandatory: bool
    message: str
    bytes_: int


@dataclass
class Records:
    """All of one run."""

    requests: list[Request] = field(default_factory=list)
    done: list[Request] = field(default_factory=list)
    lost: list[Request] = field(default_factory=list)
    moves: list[Moved] = field(default_factory=list)
    busiest: list[float] = field(default_factory=list)
    serving: list[float] = field(default_factory=list)
    blocked: int = 0
    passes: int = 0

    def arrived(self, arrival: Arrival) -> Request:
        """A request is there."""
        request = Request(arrival)
        self.requests.append(request)
        return request

    def completed(self, request: Request) -> None:
        """All its tokens are there."""
        self.done.append(request)

    def failed(self, request: Request, why: str) -> None:
        """The client got an error."""
        request.why_failed = why
        self.lost.append(request)
