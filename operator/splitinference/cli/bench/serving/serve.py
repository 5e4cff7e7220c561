"""`splitinference bench serve`: a model unsplit and in one to four segments, side by side in one run on the same cores.

Every setup is up during the whole run and the rounds take turns among them, so that what disturbs the machine disturbs all alike. The
segments and gateways are the images that serve in a cluster; the unsplit model is transformers' own `generate` in the segment image.
With `--peers`, a GGUF file of the same model is served too: by segments with the engine llama.cpp, by llama.cpp's own server, and by that
server over RPC servers.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitinference.cli.bench.serving import machine as serve_machine
from splitinference.cli.bench.serving import peers as serve_peers
from splitinference.cli.bench.serving.containers import LLAMA_CPP, Bench, Chain, Docker, MeasurementError, Options
from splitinference.cli.bench.serving.figures import ECHO_BYTES, cuts, cuts_with_blocks
from splitinference.cli.bench.serving.model import gguf_here, hidden_size, layer_bytes, model_here
from splitinference.cli.bench.serving.peers import FTYPES, UNSPLIT, Peers
from splitinference.cli.bench.serving.report import Report, show
from splitinference.cli.bench.serving.rounds import QUICK, Rounds, Size

_ENCODING = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("serve", help="a model unsplit and in segments, side by side", description=__doc__)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="config.json, tokenizer and safetensors (default: what the demo converted)"
    )
    parser.add_argument("--segment-image", default="localhost/splitinference/segment:dev", metavar="IMAGE")
    parser.add_argument("--gateway-image", default="localhost/splitinference/gateway:dev", metavar="IMAGE")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--threads", type=int, default=1, help="of each segment, of the unsplit model and of each server (default 1)")
    parser.add_argument(
        "--weights",
        default="packed",
        choices=("packed", "stored"),
        help="how torch segments hold them (default packed, as spec.segments.weights)",
    )
    parser.add_argument("--cpus", metavar="LIST", help="cores that everything runs on, such as 0,1 (default: all)")
    parser.add_argument(
        "--segments", type=int, nargs="+", metavar="N", help="how many, of each chain; 1 and 3 have to be among them (default 1 2 3 4)"
    )
    parser.add_argument("--insecure", action="store_true", help="without TLS between gateway and segments, to see what it costs")
    parser.add_argument("--rounds", type=int, help="how often each setup has its turn (default 5, with --peers 3)")
    parser.add_argument("--quick", action="store_true", help="one and three segments, few tokens, one round: are the answers the same?")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/reference/bench-serve.schema.json)")
    peers = parser.add_argument_group("other systems")
    peers.add_argument("--peers", action="store_true", help="also llama.cpp: segments with its engine, its server, its RPC split")
    peers.add_argument(
        "--llama-bin", type=Path, metavar="DIR", help="with llama-server and ggml-rpc-server (default: where the PATH has llama-server)"
    )
    peers.add_argument("--llamacpp-image", default="localhost/splitinference/segment-llamacpp:dev", metavar="IMAGE")
    peers.add_argument("--gguf", type=Path, metavar="FILE", help="the same model (default: what the test cluster keeps)")
    peers.add_argument("--encoding", choices=tuple(FTYPES), help="of the GGUF file as it is served (default: that of --dtype)")
    peers.add_argument(
        "--server", action="append", default=[], metavar="NAME=URL",
        help="a server with /v1/completions that runs on this machine and serves the model as `bench`, such as vLLM; may be repeated",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a setup of a float32 run says another text than the unsplit model, 2 if nothing can be measured."""
    size = QUICK if args.quick else Size(rounds=3) if args.peers else Size()
    size = size if args.rounds is None else replace(size, rounds=args.rounds)
    size = size if args.segments is None else replace(size, segments=tuple(sorted(set(args.segments))))
    try:
        if size.rounds < 1:
            raise MeasurementError(f"--rounds is {size.rounds}, expected at least 1.")
        if not {1, 3} <= set(size.segments) or min(size.segments) < 1:
            raise MeasurementError(f"--segments names {' '.join(map(str, size.segments))}: the ratios need 1 and 3.")
        model = args.model or model_here()
        docker = Docker.find()
        docker.needs(args.segment_image, args.gateway_image, *([args.llamacpp_image] if args.peers else []))
        options = Options(
            model, args.segment_image, args.gateway_image, args.dtype, args.threads, args.weights, args.cpus, size.chunk_tokens,
            size.clients, insecure=args.insecure, llamacpp_image=args.llamacpp_image,
        )  # fmt: skip
        encoding = args.encoding or _ENCODING[args.dtype]
        peers = serve_peers.find(args.llama_bin, args.server, args.gguf or gguf_here(), encoding) if args.peers else Peers()
        with Bench(docker, options) as bench:
            report = measure(bench, options, size, peers)
    except (MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(report.model_dump_json(indent=2))
    else:
        show(report)
    other = [f"{each.name}, {each.clients} clients" for each in report.setups if each.segments and each.same_text_as_unsplit is False]
    for name in other:
        sys.stderr.write(f"{name}: another text than the unsplit model's\n")
    return 1 if args.dtype == "float32" and any(not name.startswith(LLAMA_CPP) for name in other) else 0


def measure(bench: Bench, options: Options, size: Size, peers: Peers) -> Report:
    """Start everything, take turns, and put the figures together."""
    layers = layer_bytes(options.model)
    servers = [Chain(name, (), (), 0, url=url) for name, url in peers.servers.items()]
    chains = {n: bench.start_chain(cuts(layers, n)) for n in size.segments}
    others: list[Chain] = []
    if peers.gguf is not None and peers.encoding is not None:
        folder = serve_peers.encode(bench, peers.gguf, peers.encoding, options.threads)
        others = _llama(bench, options, size, peers, folder)
        chains |= {-n: bench.start_chain(cuts_with_blocks(layers, n), gguf=folder) for n in size.segments}
    rounds = Rounds(bench, size)
    bench.unsplit(2, prompt="Hello")
    for chain in chains.values():
        bench.wait_ready(chain)
    for other in others:
        bench.wait_server(other)
    rounds.prepare()
    for other in (*others, *servers):
        rounds.warm(other, tells=LLAMA_CPP if other.name == UNSPLIT else "")
    parts = {chain.name: rounds.warm(chain) for chain in chains.values()}
    setups = (*others, *servers, *chains.values())
    load = [serve_machine.load_now()]
    for turn in range(size.rounds):
        rounds.take(setups, several=[each.name for each in setups if len(each.hops) in (0, 1, 3)])
        load.append(serve_machine.load_now())
        sys.stderr.write(f"round {turn + 1} of {size.rounds}\n")
    three = chains[3]
    chunk = min(size.chunk_tokens, size.prefill_tokens)
    chunk_bytes = chunk * hidden_size(options.model) * (4 if options.dtype == "float32" else 2)
    asked = {"port": three.http_ports[0], "model": three.hops[0]["model"], "route": three.hops[1:]}
    hop_ms = bench.client(do="echo", sizes=[64, ECHO_BYTES, chunk_bytes], times=size.echoes, **asked)
    transfer_ms = (len(three.hops) - 1) * size.prefill_tokens / chunk * hop_ms[str(chunk_bytes)]
    cores = len(bench.client(do="cpus"))
    return Report(
        model=options.model.name,
        dtype=options.dtype,
        encoding=peers.encoding,
        threads=options.threads,
        weights=options.weights,
        machine=serve_machine.machine_here(cores, tuple(load)),
        kernels=_kernels(bench, [chains[n] for n in (3, -3) if n in chains], others),
        rounds=size.rounds,
        setups=rounds.setups(),
        hop_ms_by_bytes=hop_ms,
        token_ms_by_part=parts,
        ratios=rounds.ratios(transfer_ms, hop_ms[str(ECHO_BYTES)], min(cores, 3 * options.threads)),
        peers=serve_peers.ratios(rounds.taken, _all_threads(cores, options.threads)) if peers.gguf else None,
        not_measured=dict(peers.missing) or {"other systems": "they need --peers"},
    )


def _llama(bench: Bench, options: Options, size: Size, peers: Peers, folder: Path) -> list[Chain]:
    """llama.cpp's server: unsplit, with as many threads as three segments have where that is more, and over RPC servers."""
    if peers.programs is None:
        return []
    cores = len(bench.client(do="cpus"))
    threads = {UNSPLIT: options.threads, _all_threads(cores, options.threads): min(cores, 3 * options.threads)}
    made = [serve_peers.start_server(bench, peers.programs, folder, name=name, threads=count) for name, count in threads.items()]
    split = [n for n in size.segments if n > 1] if peers.programs.rpc else []
    return made + [
        serve_peers.start_server(bench, peers.programs, folder, name=serve_peers.rpc_name(n), threads=options.threads, rpc=n) for n in split
    ]


def _all_threads(cores: int, threads: int) -> str:
    """The setup of llama.cpp's server with as many threads as three segments have on these cores."""
    most = min(cores, 3 * threads)
    return UNSPLIT if most <= threads else f"{UNSPLIT}-{most}-threads"


def _kernels(bench: Bench, chains: Sequence[Chain], others: Sequence[Chain]) -> dict[str, tuple[str, ...]]:
    """Of a chain its first segment's."""
    client = bench.docker.client
    found = {
        chain.name: serve_machine.kernels(client, bench.name(chain.hops[0]["segment"]), torch=not chain.name.startswith(LLAMA_CPP))
        for chain in chains
    }
    return found | {other.name: serve_machine.kernels(client, bench.name(other.name), torch=False) for other in others[:1]}
