"""`splitinference bench serve`: a model unsplit and in one to four segments, side by side in one run on the same cores.

Every setup is up during the whole run and the rounds take turns among them, so that what disturbs the machine disturbs all alike. The
segments and gateways are the images that serve in a cluster; the unsplit model is transformers' own `generate` in the segment image.
"""

import argparse
import json
import os
import platform
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.serving.containers import LLAMA, PREFIX, Bench, CannotMeasure, Chain, Docker, Options
from splitinference.cli.bench.serving.figures import (
    ECHO_BYTES,
    Measured,
    Ratios,
    Report,
    Round,
    Setup,
    cuts,
    per_core,
    prefill_ratio,
    setup,
    speed_ratio,
    token_parts,
)

_LIMIT_SECONDS = 300.0
_TOPICS = (
    "a river in spring", "the first steam engine", "how bread is made", "an old lighthouse",
    "the night sky", "a walk through a market", "why leaves turn red", "a letter to a friend",
)  # fmt: skip
_NOT_MEASURED = {
    LLAMA: "needs --llama-cpp (pip install --no-deps --target DIR xllamacpp) and --gguf, the same model as a GGUF file",
    "llama.cpp with its RPC split": "PyPI has no wheel with the RPC server",
    "petals": "its last release needs transformers before 4.35 and pydantic before 2, which do not run on the image's Python",
    "exo": "not on PyPI; the package of that name there is another project",
}


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("serve", help="a model unsplit and in segments, side by side", description=__doc__)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="config.json, tokenizer and safetensors (default: what the demo converted)"
    )
    parser.add_argument("--segment-image", default="localhost/splitinference/segment:dev", metavar="IMAGE")
    parser.add_argument("--gateway-image", default="localhost/splitinference/gateway:dev", metavar="IMAGE")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each segment and in the unsplit model (default 1)")
    parser.add_argument(
        "--weights",
        default="packed",
        choices=("packed", "stored"),
        help="how segments hold them (default packed, as spec.segments.weights)",
    )
    parser.add_argument("--cpus", metavar="LIST", help="cores that everything runs on, such as 0,1 (default: all)")
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="also llama.cpp: the folder that holds the package xllamacpp")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the same model for llama.cpp, of any encoding: it is encoded as --dtype")
    parser.add_argument("--insecure", action="store_true", help="without TLS between gateway and segments, to see what it costs")
    parser.add_argument("--rounds", type=int, help="how often each setup has its turn (default 5)")
    parser.add_argument("--quick", action="store_true", help="one and three segments, few tokens, one round: are the answers the same?")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/reference/bench-serve.schema.json)")
    parser.set_defaults(run=run)


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


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a setup of a float32 run says another text than the unsplit model, 2 if nothing can be measured."""
    size = QUICK if args.quick else Size()
    size = size if args.rounds is None else Size(**{**size.__dict__, "rounds": args.rounds})
    try:
        model = args.model or model_here()
        docker = Docker.find()
        docker.needs(args.segment_image, args.gateway_image)
        options = Options(
            model,
            args.segment_image,
            args.gateway_image,
            args.dtype,
            args.threads,
            args.weights,
            args.cpus,
            size.chunk_tokens,
            size.clients,
            args.llama_cpp,
            args.gguf,
            args.insecure,
        )
        with Bench(docker, options) as bench:
            report = measure(bench, options, size)
    except (CannotMeasure, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(report.model_dump_json(indent=2))
    else:
        show(report)
    other = [f"{each.name}, {each.clients} clients" for each in report.setups if each.segments and not each.same_text_as_unsplit]
    for name in other:
        sys.stderr.write(f"{name}: another text than the unsplit model's\n")
    return 1 if other and args.dtype == "float32" else 0


def measure(bench: Bench, options: Options, size: Size) -> Report:
    """Start everything, take turns, and put the figures together."""
    layers = layer_bytes(options.model)
    llama = [bench.start_llama(options.llama_cpp, options.gguf)] if options.llama_cpp and options.gguf else []
    chains = {n: bench.start_chain(cuts(layers, n)) for n in size.segments}
    rounds = _Rounds(bench, size)
    bench.unsplit(2, prompt="Hello")
    for chain in chains.values():
        bench.wait_ready(chain)
    for other in llama:
        bench.wait_llama(other)
    rounds.prepare()
    for other in llama:
        rounds.warm(other)
    parts = {chain.name: rounds.warm(chain) for chain in chains.values()}
    for turn in range(size.rounds):
        rounds.take((*llama, *chains.values()))
        sys.stderr.write(f"round {turn + 1} of {size.rounds}\n")
    three = chains[3]
    chunk = min(size.chunk_tokens, size.prefill_tokens)
    chunk_bytes = chunk * _hidden(options.model) * (4 if options.dtype == "float32" else 2)
    asked = {"port": three.http_ports[0], "model": three.hops[0]["model"], "route": three.hops[1:]}
    hop_ms = bench.client(do="echo", sizes=[64, ECHO_BYTES, chunk_bytes], times=size.echoes, **asked)
    transfer_ms = (len(three.hops) - 1) * size.prefill_tokens / chunk * hop_ms[str(chunk_bytes)]
    available = bench.client(do="cpus")
    return Report(
        model=options.model.name,
        dtype=options.dtype,
        threads=options.threads,
        weights=options.weights,
        cores=len(available),
        machine=_machine(),
        rounds=size.rounds,
        setups=rounds.setups(),
        hop_ms_by_bytes=hop_ms,
        token_ms_by_part=parts,
        ratios=rounds.ratios(transfer_ms, hop_ms[str(ECHO_BYTES)], min(len(available), 3 * options.threads)),
        not_measured={name: why for name, why in _NOT_MEASURED.items() if not (llama and name == LLAMA)},
    )


@dataclass
class _Rounds:
    """Rounds of every setup under three loads: one client, several clients, one long prompt."""

    bench: Bench
    size: Size
    prompts: list[str] = field(default_factory=list)
    long: list[int] = field(default_factory=list)
    texts: dict[str, list[str]] = field(default_factory=dict)
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
        self.texts = {"one": texts[:1], "several": texts, "long": [long["text"]]}

    def warm(self, chain: Chain) -> dict[str, float]:
        """The first requests open connections and grow buffers; then where the time of one client's tokens goes, in ms (no hops: empty)."""
        self._load(chain, "one")
        gaps = [gap for request in self._load(chain, "one").requests for gap in request.gaps_ms]
        found = token_parts(median(gaps), self.bench.observed(chain)) if chain.hops else {}
        self._load(chain, "several")
        self._load(chain, "long")
        return found

    def take(self, chains: Sequence[Chain]) -> None:
        """One turn of every setup under every load."""
        for load in ("one", "long"):
            self.taken.setdefault(("unsplit", load), []).append(self._whole(load))
            for chain in chains:
                self.segments[chain.name] = len(chain.hops)
                self.taken.setdefault((chain.name, load), []).append(self._load(chain, load))
        for chain in chains:
            if len(chain.hops) in (0, 1, 3):
                self.taken.setdefault((chain.name, "several"), []).append(self._load(chain, "several"))

    def setups(self) -> tuple[Setup, ...]:
        """Figures of all that was taken."""
        lengths = {"one": self.prompt_tokens, "several": self.prompt_tokens, "long": len(self.long)}
        return tuple(
            setup(name, self.segments[name], lengths[load], rounds, self.texts[load]) for (name, load), rounds in self.taken.items()
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

    def _load(self, chain: Chain, load: str) -> Round:
        prompts: dict[str, list[Any]] = {"one": self.prompts[:1], "several": self.prompts, "long": [self.long]}
        most = 1 if load == "long" else self.size.tokens
        bodies = [{"model": PREFIX, "prompt": prompt, "max_tokens": most} for prompt in prompts[load]]
        found = self.bench.client(do="load", port=chain.port, bodies=bodies, limit_s=_LIMIT_SECONDS)
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


def layer_bytes(model: Path) -> list[float]:
    """Bytes that decoding reads of each layer: embedding (one row: nothing), blocks, head; from the headers of the safetensors.

    Raises:
        CannotMeasure: the folder holds no such model.
    """
    sizes: dict[str, int] = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        sizes |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    blocks: dict[int, float] = {}
    for name, size in sizes.items():
        if found := re.search(r"\.(?:layers|h)\.(\d+)\.", name):
            blocks[int(found[1])] = blocks.get(int(found[1]), 0) + size
    if not blocks:
        raise CannotMeasure(f"{model} holds no safetensors of a language model.")
    embeddings = [size for name, size in sizes.items() if re.search(r"(embed_tokens|wte)\.weight$", name)]
    head = next((float(size) for name, size in sizes.items() if name.endswith("lm_head.weight")), float(max(embeddings, default=0)))
    return [0.0, *(blocks[i] for i in sorted(blocks)), head]


def show(report: Report) -> None:
    """Tables for a reader."""
    title = f"{report.model}, {report.dtype}, {report.threads} thread(s), {report.weights} weights, {report.cores} cores, {report.machine}"
    table = Table("setup", "clients", "prompt", "tokens/s", "TTFT p50/p90 ms", "TPOT p50/p90/p99 ms", "same text", title=title)
    for each in report.setups:
        first, other = each.ttft_ms, each.tpot_ms
        gaps = f"{other.p50:.1f} / {other.p90:.1f} / {other.p99:.1f}" if other else ""
        same = "yes" if each.same_text_as_unsplit else "no"
        first_shown = f"{first.p50:.0f} / {first.p90:.0f}"
        table.add_row(each.name, str(each.clients), str(each.prompt_tokens), f"{each.tokens_per_second:.1f}", first_shown, gaps, same)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    for name, value in report.ratios.model_dump().items():
        console.print(f"{name}: {value}")


def model_here() -> Path:
    """The model that the demo converted.

    Raises:
        CannotMeasure: there is none.
    """
    base = os.environ.get("SPLITINFERENCE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/splitinference"
    configs = sorted(Path(base).expanduser().glob("models/*/config.json"))
    found = [path.parent for path in configs if not (path.parent / "modules.json").exists()]  # sentence encoders lie there too
    if not found:
        raise CannotMeasure("No model: give a folder with --model, or let `make demo` convert one.")
    return found[0]


def _hidden(model: Path) -> int:
    config = json.loads((model / "config.json").read_text())
    return int(config.get("hidden_size") or config["n_embd"])


def _machine() -> str:
    names = {line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")}
    return ", ".join(sorted(names)) or platform.machine()
