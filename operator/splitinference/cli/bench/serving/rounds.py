"""Rounds of `bench serve`: every setup takes its turn under three loads, one client, several clients, one long prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from splitinference.cli.bench.serving.containers import PREFIX, Bench, Chain
from splitinference.cli.bench.serving.figures import (
    Measured,
    Ratios,
    Round,
    Setup,
    per_core,
    prefill_ratio,
    setup,
    speed_ratio,
    token_parts,
)

LIMIT_SECONDS = 300.0
_TOPICS = (
    "a river in spring", "the first steam engine", "how bread is made", "an old lighthouse",
    "the night sky", "a walk through a market", "why leaves turn red", "a letter to a friend",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is measured. The names of ratios say three segments, eight clients and 1000 tokens: of a quick run, less."""

    segments: tuple[int, ...] = (1, 2, 3, 4)
    rounds: int = 5
    tokens: int = 64
    clients: int = 8
    prefill_tokens: int = 1000
    chunk_tokens: int = 256
    echoes: int = 200


QUICK = Size((1, 3), rounds=1, tokens=12, clients=3, prefill_tokens=60, chunk_tokens=32, echoes=20)


@dataclass
class Rounds:
    """What was measured, round by round. `unsplit` is transformers; `texts` has what each engine's unsplit model says, by load."""

    bench: Bench
    size: Size
    prompts: list[str] = field(default_factory=list)
    long: list[int] = field(default_factory=list)
    texts: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    taken: dict[tuple[str, str], list[Round]] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=lambda: {"unsplit": 0})
    prompt_tokens: int = 0

    def prepare(self) -> None:
        """What the unsplit model says to every prompt, and a long prompt of its own tokens."""
        self.prompts = [f"Write a long and detailed text about {topic}." for topic in _TOPICS[: self.size.clients]]
        answers = [self.bench.unsplit(self.size.tokens, prompt=prompt) for prompt in self.prompts]
        self.prompt_tokens = len(answers[0]["prompt_tokens"])
        said = [token for answer in answers for token in (*answer["prompt_tokens"], *answer["tokens"])]
        self.long = (said * -(-self.size.prefill_tokens // len(said)))[: self.size.prefill_tokens]
        long = self.bench.unsplit(1, prompt_tokens=self.long)
        texts = [answer["text"] for answer in answers]
        self.texts["torch"] = {"one": texts[:1], "several": texts, "long": [long["text"]]}

    def warm(self, chain: Chain, *, tells: str = "") -> dict[str, float]:
        """The first requests open connections and grow buffers; then where the time of one client's tokens goes, in ms (no hops: empty).

        `tells`: the chain is the unsplit model of this engine, and what it says is what others should say.
        """
        self._load(chain, "one")
        one = self._load(chain, "one")
        gaps = [gap for request in one.requests for gap in request.gaps_ms]
        found = token_parts(median(gaps), self.bench.observed(chain)) if chain.hops else {}
        alone = [self._load(chain, "one", self.prompts[i]) for i in range(len(self.prompts))] if tells else []
        self._load(chain, "several")
        long = self._load(chain, "long")
        if tells:
            texts = [each.requests[0].text for each in alone]
            self.texts[tells] = {"one": texts[:1], "several": texts, "long": [long.requests[0].text]}
        return found

    def take(self, chains: Sequence[Chain], *, several: Sequence[str]) -> None:
        """One turn of every setup under every load; under the load of several clients, of those that `several` names."""
        for load in ("one", "long"):
            self.taken.setdefault(("unsplit", load), []).append(self._whole(load))
            for chain in chains:
                self.segments[chain.name] = len(chain.hops)
                self.taken.setdefault((chain.name, load), []).append(self._load(chain, load))
        for chain in chains:
            if chain.name in several:
                self.taken.setdefault((chain.name, "several"), []).append(self._load(chain, "several"))

    def setups(self) -> tuple[Setup, ...]:
        """Figures of all that was taken."""
        lengths = {"one": self.prompt_tokens, "several": self.prompt_tokens, "long": len(self.long)}
        return tuple(
            setup(name, self.segments[name], lengths[load], rounds, self._expected(name, load))
            for (name, load), rounds in self.taken.items()
        )

    def ratios(self, transfer_ms: float, echo_hop_ms: float, cores: int) -> Ratios:
        """Ratios of three segments."""
        three, one = "segments-3", "segments-1"
        return Ratios(
            three_segments_one_client=speed_ratio(self.taken[three, "one"], self.taken["unsplit", "one"]),
            three_by_one_segment=speed_ratio(self.taken[three, "one"], self.taken[one, "one"]),
            eight_clients_per_core=per_core(self.taken[three, "several"], self.taken[one, "one"], cores),
            prefill_1000=prefill_ratio(self.taken[three, "long"], self.taken["unsplit", "long"], transfer_ms),
            echo_hop_ms=echo_hop_ms,
        )

    def _expected(self, name: str, load: str) -> list[str] | None:
        texts = self.texts.get("llamacpp" if name.startswith(("llamacpp", "llama.cpp")) else "torch")
        return texts[load] if texts else None

    def _load(self, chain: Chain, load: str, prompt: str = "") -> Round:
        prompts: dict[str, list[Any]] = {"one": [prompt or self.prompts[0]], "several": self.prompts, "long": [self.long]}
        most = 1 if load == "long" else self.size.tokens
        bodies = [{"model": PREFIX, "prompt": prompt, "max_tokens": most} for prompt in prompts[load]]
        if chain.url:
            at = urlsplit(chain.url)
            found = self.bench.client_here(do="load", host=at.hostname, port=at.port or 80, bodies=bodies, limit_s=LIMIT_SECONDS)
        else:
            found = self.bench.client(do="load", port=chain.port, bodies=bodies, limit_s=LIMIT_SECONDS)
        return Round(ms=found["ms"], requests=tuple(Measured(**request) for request in found["streams"]))

    def _whole(self, load: str) -> Round:
        found = (
            self.bench.unsplit(1, prompt_tokens=self.long)
            if load == "long"
            else self.bench.unsplit(self.size.tokens, prompt=self.prompts[0])
        )
        one = Measured(
            first_ms=found["first_ms"],
            gaps_ms=tuple(found["gaps_ms"]),
            ms=found["ms"],
            tokens=len(found["tokens"]),
            text=found["text"],
        )
        return Round(ms=one.ms, requests=(one,))
