"""`splitinference bench mlperf`: MLPerf's LoadGen against a gateway, in its four scenarios. **This is not an MLPerf result.**

MLPerf's rules ask for its own models, data, accuracy runs and run times. Here LoadGen plays its arrivals and takes its latencies, on any
model. For the Server scenario the highest rate is searched at which p99 keeps the bounds.

Without `--url`, the segment and gateway images run here, as in `bench serve`. With `--cores`, each segment gets a share of the machine,
and two chains are compared: cut as if all were equal, and cut as the planner does for these shares (a re-split).
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.loadgen import mlperf_loadgen as lg
from splitinference.cli.bench.loadgen.mlperf_loadgen import SCENARIOS, Amount, Bounds, CannotLoadError, Relay, Result
from splitinference.cli.bench.serving.containers import PREFIX, Bench, Chain, Docker, MeasurementError, Options
from splitinference.cli.bench.serving.figures import cuts
from splitinference.cli.bench.serving.model import layer_bytes, model_here

BOUNDS = {
    "llama3.1-8b": Bounds(ttft_ms=2000.0, tpot_ms=100.0),
    "llama3.1-8b-interactive": Bounds(ttft_ms=500.0, tpot_ms=30.0),
    "bert-99": Bounds(latency_ms=130.0),
}
"""Server bounds of MLPerf Inference's mlperf.conf, by its names of benchmarks."""
_PROMPTS = tuple(
    f"{what} {about}."
    for what, about in itertools.product(
        ("Write a short text about", "Explain to a child", "List five facts about", "Tell a story about"),
        (
            "a river in spring",
            "the first steam engine",
            "how bread is made",
            "an old lighthouse",
            "the night sky",
            "a market",
            "autumn leaves",
        ),
    )
)
_LIMIT_SECONDS = 300.0
_NARROW = 1.08
"""The search for a rate ends where the next one would be less than so many times the best."""


class Rate(BaseModel):
    """The highest rate at which the Server scenario keeps its bounds, of those tried."""

    model_config = ConfigDict(frozen=True)
    requests_per_second: float = Field(description="0: not even the lowest one tried keeps them")
    tried: tuple[Result, ...]


class Setup(BaseModel):
    """One server under all scenarios."""

    model_config = ConfigDict(frozen=True)
    name: str
    cuts: tuple[int, ...] = ()
    cores: tuple[float, ...] = ()
    results: tuple[Result, ...]
    rate: Rate | None = None


class Report(BaseModel):
    """All that was measured."""

    model_config = ConfigDict(frozen=True)
    note: str = "LoadGen's arrivals and latencies on a model, data and run times of our own: not an MLPerf result."
    model: str
    tokens: int = Field(description="answers have so many; 0: answers of an encoder")
    ttft_bound_ms: float
    tpot_bound_ms: float
    latency_bound_ms: float
    machine_cores: int
    load: tuple[float, float, float] = Field(description="the machine's load averages at the end")
    setups: tuple[Setup, ...]


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser("mlperf", help="MLPerf's LoadGen against a gateway", description=__doc__, formatter_class=raw)
    parser.add_argument("--url", help="a gateway that serves, such as http://127.0.0.1:8080 (a key for it: OPENAI_API_KEY)")
    parser.add_argument("--name", default=PREFIX, help="the model's name there")
    parser.add_argument("--scenario", action="append", choices=SCENARIOS, help="only this one; may be repeated")
    parser.add_argument("--bounds", default="llama3.1-8b", metavar="NAME|TTFT,TPOT", help=f"{', '.join(BOUNDS)}, or two numbers in ms")
    parser.add_argument("--tokens", type=_at_least_two, default=32, help="of each answer (default 32)")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt in each line")
    parser.add_argument("--encoder", type=int, metavar="TOKENS", help="an encoder through KServe v2, with inputs of so many tokens")
    parser.add_argument("--segments", type=int, default=3, help="without --url: how many (default 3)")
    parser.add_argument("--cores", metavar="LIST", help="without --url: cores of each segment, such as 1,0.4,1")
    parser.add_argument("--model", type=Path, metavar="DIR", help="without --url: the model's folder (default: what the demo converted)")
    parser.add_argument("--segment-image", default="localhost/splitinference/segment:dev", metavar="IMAGE")
    parser.add_argument("--gateway-image", default="localhost/splitinference/gateway:dev", metavar="IMAGE")
    parser.add_argument("--seconds", type=float, default=20.0, help="that one run takes at least (default 20)")
    parser.add_argument("--quick", action="store_true", help="a few requests in each scenario: does it work?")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a request failed, 2 if nothing can be measured."""
    try:
        lg.loadgen()
        bounds = bounds_of(args.bounds)
        bodies = _bodies(args)
        setups = tuple(_setups(args, bodies, bounds))
    except (CannotLoadError, MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    report = Report(
        model=args.name if args.url else (args.model or model_here()).name,
        tokens=0 if args.encoder else args.tokens,
        ttft_bound_ms=bounds.ttft_ms,
        tpot_bound_ms=bounds.tpot_ms,
        latency_bound_ms=bounds.latency_ms,
        machine_cores=len(os.sched_getaffinity(0)),
        load=os.getloadavg(),
        setups=setups,
    )
    if args.json:
        print(report.model_dump_json(indent=2))
    else:
        show(report)
    failed = [result for setup in setups for result in (*setup.results, *(setup.rate.tried if setup.rate else ())) if result.failed]
    for result in failed:
        sys.stderr.write(f"{result.scenario}: {result.failed} requests failed, the first one: {result.first_failure}\n")
    return 1 if failed else 0


def bounds_of(text: str) -> Bounds:
    """Bounds by name, or two numbers.

    Raises:
        CannotLoadError: neither.
    """
    if text in BOUNDS:
        return BOUNDS[text]
    try:
        first, each = (float(part) for part in text.split(","))
    except ValueError:
        raise CannotLoadError(f"--bounds {text}: expected {', '.join(BOUNDS)}, or two numbers in ms, such as 2000,100") from None
    if not (0 < first < float("inf") and 0 < each < float("inf")):
        raise CannotLoadError(f"--bounds {text}: expected two numbers above 0")
    return Bounds(ttft_ms=first, tpot_ms=each)


def _at_least_two(text: str) -> int:
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError("expected at least 2: the time per further token needs one")
    return number


def _bodies(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The requests that LoadGen chooses from."""
    if args.encoder:
        tokens = {"name": "input_ids", "shape": [1, args.encoder], "datatype": "INT64"}
        return [{"inputs": [{**tokens, "data": [(7 * k + 11 * n) % 1000 + 1 for n in range(args.encoder)]}]} for k in range(16)]
    prompts = [line for line in args.prompts.read_text("utf-8").splitlines() if line.strip()] if args.prompts else list(_PROMPTS)
    if not prompts:
        raise CannotLoadError(f"{args.prompts}: no prompt")
    asked = {"model": args.name, "stream": True, "stream_options": {"include_usage": True}, "temperature": 0, "ignore_eos": True}
    return [{**asked, "prompt": prompt, "max_tokens": args.tokens} for prompt in prompts]


def _path(args: argparse.Namespace) -> str:
    return f"/v2/models/{args.name}/infer" if args.encoder else "/v1/completions"


def _setups(args: argparse.Namespace, bodies: Sequence[Mapping[str, Any]], bounds: Bounds) -> Iterator[Setup]:
    amount = Amount(0.0, 4, 2) if args.quick else Amount(args.seconds, 24)
    if args.url:
        if args.cores:
            raise CannotLoadError("--cores is for segments that run here: leave out --url")
        key = os.environ.get("OPENAI_API_KEY")
        target = _target(args.url.rstrip("/") + _path(args), {"Authorization": f"Bearer {key}"} if key else {})
        with Relay([sys.executable, "-c", _relay(), target]) as relay:
            yield _play(args, relay, bodies, (amount, bounds), name=args.url)
        return
    with _bench(args) as (bench, model):
        for chain, points, cores in _chains(args, bench, model):
            target = _target(f"http://127.0.0.1:{chain.port}{_path(args)}", {})
            with Relay([bench.docker.client, "exec", "-i", bench.identity, "python", "-c", _relay(), target]) as relay:
                yield _play(args, relay, bodies, (amount, bounds), name=chain.name).model_copy(update={"cuts": points, "cores": cores})


def _relay() -> str:
    return resources.files("splitinference.cli.bench.loadgen").joinpath("mlperf_relay.py").read_text("utf-8")


def _target(url: str, headers: Mapping[str, str]) -> str:
    return json.dumps({"url": url, "headers": headers, "limit_s": _LIMIT_SECONDS})


@contextmanager
def _bench(args: argparse.Namespace) -> Iterator[tuple[Bench, Path]]:
    model = args.model or model_here()
    docker = Docker.find()
    docker.needs(args.segment_image, args.gateway_image)
    options = Options(model, args.segment_image, args.gateway_image, "bfloat16", 1, "packed", None, 256, 16)
    with Bench(docker, options) as bench:
        yield bench, model


def _chains(args: argparse.Namespace, bench: Bench, model: Path) -> Iterator[tuple[Chain, tuple[int, ...], tuple[float, ...]]]:
    """The chains to compare, one after the other, each ready."""
    try:
        cores = tuple(float(part) for part in args.cores.split(",")) if args.cores else ()
    except ValueError:
        raise CannotLoadError(f"--cores {args.cores}: expected numbers with commas between") from None
    if any(not 0 < share <= len(os.sched_getaffinity(0)) for share in cores) or len(cores) == 1:
        raise CannotLoadError(f"--cores {args.cores}: expected two numbers or more, above 0 and at most the machine's cores")
    even = cuts(layer_bytes(model), len(cores) or args.segments)
    plans = [("even cuts", even, cores)]
    if cores:
        plans.append(("planned cuts", *planned(model, cores)))
    for number, (name, points, shares) in enumerate(plans):
        chain = bench.start_chain(points, f"{name.split()[0]}-{number}", shares)
        bench.wait_ready(chain)
        yield Chain(name, chain.hops, chain.http_ports, chain.port, chain.internal_port), points, shares


def planned(model: Path, cores: Sequence[float]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Where the planner cuts the model for nodes of so many cores, and the cores of each segment.

    Raises:
        CannotLoadError: there is no plan.
    """
    from splitinference.core.model_files.config import profile_from_model
    from splitinference.core.planner import Limits, Solved
    from splitinference.core.planner.solver import solve
    from splitinference.core.values.cluster import Node, Snapshot
    from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Workload
    from splitinference.settings import Settings
    from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables

    settings, folder = Settings(), str(model)
    _, tensors = tensor_tables(folder)
    nodes = tuple(
        Node(
            name=f"node-{number}",
            memory_free_bytes=2**40,
            flops_per_s=share * settings.core_gflops * 1e9,
            memory_bandwidth_bytes_per_s=share * settings.core_memory_bandwidth_gbps * 1e9,
        )
        for number, share in enumerate(cores)
    )
    problem = Problem(
        profile=profile_from_model(read_json(folder, CONFIG), tensors, "bfloat16", files=file_names(folder)),
        snapshot=Snapshot(nodes=nodes),
        workload=Workload(prompt_tokens=32, output_tokens=32),
        objective=Objective(goal=Goal.BOTTLENECK),
        constraints=Constraints(min_segments=len(cores)),
    )
    answer = solve(problem, Limits(seconds=10))
    if not isinstance(answer, Solved):
        raise CannotLoadError(f"no plan for {len(cores)} segments: {answer}")
    segments = answer.plan.pipelines[0].segments
    return (0, *(s.end for s in segments)), tuple(cores[int(s.node.rpartition("-")[2])] for s in segments)


def _play(args: argparse.Namespace, relay: Relay, bodies: Sequence[Mapping[str, Any]], how: tuple[Amount, Bounds], *, name: str) -> Setup:
    amount, bounds = how
    chosen = args.scenario or list(SCENARIOS)
    lg.play(relay, bodies, "SingleStream", Amount(0.0, 2), bounds=bounds)  # opens connections, grows buffers
    results = []
    for scenario in SCENARIOS:
        if scenario in chosen and scenario != "Server":
            expected = amount.queries / max(amount.seconds, 1.0)
            results.append(lg.play(relay, bodies, scenario, amount, bounds=bounds, qps=expected))
            sys.stderr.write(f"{name}: {scenario}\n")
    rate = None
    if "Server" in chosen:
        most = next((r.samples_per_second for r in results if r.scenario == "Offline"), None)
        most = (
            most
            or lg.play(relay, bodies, "Offline", Amount(0.0, amount.queries), bounds=bounds, qps=amount.queries).samples_per_second
            or 1.0
        )
        rate = highest_rate(
            lambda qps: lg.play(relay, bodies, "Server", amount, bounds=bounds, qps=qps), most, tries=2 if args.quick else 7
        )
        sys.stderr.write(f"{name}: Server\n")
        best = [r for r in rate.tried if r.keeps_bounds]
        results.append(max(best, key=lambda r: r.target_qps or 0.0) if best else rate.tried[-1])
    return Setup(name=name, results=tuple(results), rate=rate)


def highest_rate(attempt: Any, most: float, tries: int) -> Rate:
    """Bisect between 0 and `most` requests per second, what the server answers when all wait at once. `attempt(rate)` is one run."""
    low, high, tried = 0.0, most, []
    rate = most / 2
    for _ in range(tries):
        result = attempt(rate)
        tried.append(result)
        low, high = (rate, high) if result.keeps_bounds else (low, rate)
        rate = (low + high) / 2
        if low and rate / low < _NARROW:
            break
    return Rate(requests_per_second=low, tried=tuple(tried))


def show(report: Report) -> None:
    """Tables for a reader."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    what = f"answers of {report.tokens} tokens" if report.tokens else "an encoder"
    load = " ".join(f"{each:.1f}" for each in report.load)
    table = Table(
        "server", "scenario", "requests", "requests/s", "tokens/s",
        "latency p50/p90/p99 ms", "TTFT p50/p99 ms", "TPOT p50/p99 ms", "LoadGen",
        title=f"{report.model}, {what}, {report.machine_cores} cores, load {load}",
    )  # fmt: skip
    for setup in report.setups:
        for result in setup.results:
            first, each, whole = result.ttft_ms, result.tpot_ms, result.latency_ms
            table.add_row(
                setup.name,
                result.scenario,
                str(result.queries),
                _shown(result.samples_per_second),
                _shown(result.tokens_per_second),
                f"{whole.p50:.0f} / {whole.p90:.0f} / {whole.p99:.0f}",
                f"{first.p50:.0f} / {first.p99:.0f}" if first else "",
                f"{each.p50:.1f} / {each.p99:.1f}" if each else "",
                "valid" if result.loadgen_valid else "not valid",
            )
    console.print(table)
    for setup in report.setups:
        if setup.cuts:
            parts = [
                f"[{a}, {b})" + (f" on {setup.cores[k]:g} cores" if setup.cores else "")
                for k, (a, b) in enumerate(itertools.pairwise(setup.cuts))
            ]
            console.print(f"{setup.name}: segments {', '.join(parts)}")
        if setup.rate:
            bounds = (
                f"p99 {report.ttft_bound_ms:g} and {report.tpot_bound_ms:g} ms" if report.tokens else f"p99 {report.latency_bound_ms:g} ms"
            )
            console.print(f"{setup.name}: highest rate that keeps {bounds}: {setup.rate.requests_per_second:.3g} requests/s")
    console.print(report.note)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
