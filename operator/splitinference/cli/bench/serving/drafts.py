"""`splitinference bench drafts`: speculative decoding on and off, side by side, for texts that repeat themselves and for one that does not.

Both chains are up during the whole run, and rounds take turns between them. Links that take time are made by a relay on loopback.
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.serving.containers import LLAMA_CPP, PREFIX, TORCH, Bench, Chain, Docker, MeasurementError, Options
from splitinference.cli.bench.serving.figures import cuts, cuts_with_blocks
from splitinference.cli.bench.serving.model import gguf_here, layer_bytes, model_here
from splitinference.cli.bench.serving.peers import FTYPES, encode

_LIMIT_SECONDS = 300.0
_RECORDS = "\n".join(
    f'{{"id": {number}, "part": "{part}", "city": "{city}", "kind": "{kind}", "active": true}}'
    for number, (part, city, kind) in enumerate(
        [
            ("Ada Berg", "Oslo", "engineer"),
            ("Ben Costa", "Porto", "designer"),
            ("Cleo Dahl", "Bergen", "analyst"),
            ("Dan Ek", "Lund", "writer"),
        ],
        start=101,
    )
)
_PROSE = (
    "The river Orva rises in the northern hills and flows for two hundred kilometres to the sea. Its water drives nine mills. "
    "In spring the river floods the meadows near Halden, and the farmers move their cattle to the higher ground."
)
TASKS = {
    "editing": f"Repeat these JSON lines exactly, but write false instead of true:\n{_RECORDS}\n\nThe lines again, edited:\n",
    "extraction": f"Text: {_PROSE}\n\nCopy out every sentence of the text that mentions the river, word for word:\n",
    "story": "Write a long story about a lighthouse keeper who finds a map.\n\n",
}
"""Prompts by task. A small model follows them as well as it can; what it says is the same with drafts and without."""


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("drafts", help="speculative decoding on and off, side by side", description=__doc__)
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="config.json, tokenizer and safetensors (default: what the demo converted)"
    )
    parser.add_argument("--segment-image", default="localhost/splitinference/segment:dev", metavar="IMAGE")
    parser.add_argument("--gateway-image", default="localhost/splitinference/gateway:dev", metavar="IMAGE")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--engine", default=TORCH, choices=(TORCH, LLAMA_CPP), help="of the segments (default torch)")
    parser.add_argument("--llamacpp-image", default="localhost/splitinference/segment-llamacpp:dev", metavar="IMAGE")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="the same model for llama.cpp (default: what the test cluster keeps)")
    parser.add_argument("--encoding", default="BF16", choices=tuple(FTYPES), help="of the GGUF file as it is served (default BF16)")
    parser.add_argument("--segments", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer (default 96)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0.0], metavar="MS", help="of each link (default 0)")
    parser.add_argument("--cpus", metavar="LIST", help="cores that everything runs on")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a float32 run says another text with drafts than without, 2 if nothing can be measured."""
    try:
        model = args.model or model_here()
        docker = Docker.find()
        docker.needs(args.llamacpp_image if args.engine == LLAMA_CPP else args.segment_image, args.gateway_image)
        options = Options(
            model, args.segment_image, args.gateway_image, args.dtype, args.threads, "packed", args.cpus, 256, 4,
            llamacpp_image=args.llamacpp_image,
        )  # fmt: skip
        found = [each for ms in args.round_trip_ms for each in measure(docker, options, args, ms)]
    except (MeasurementError, OSError) as problem:
        sys.stderr.write(f"{problem}\n")
        return 2
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return int(args.dtype == "float32" and not all(each["same_text"] for each in found))


def measure(docker: Docker, options: Options, args: argparse.Namespace, round_trip_ms: float) -> list[dict[str, Any]]:
    """One row for each task: tokens a second without and with drafts, medians of the rounds."""
    with Bench(docker, options) as bench:
        layers, gguf = layer_bytes(options.model), None
        if args.engine == LLAMA_CPP:
            gguf = encode(bench, args.gguf or gguf_here(), args.encoding, args.threads)
        at = cuts_with_blocks(layers, args.segments) if gguf else cuts(layers, args.segments)
        chains = [
            bench.start_chain(at, label, round_trip_ms=round_trip_ms, gguf=gguf, SI_SPECULATION=speculation)
            for label, speculation in (("plain", "off"), ("drafts", "auto"))
        ]
        for chain in chains:
            bench.wait_ready(chain)
        for chain in chains:  # opens connections, grows buffers, and measures what a step takes
            for prompt in TASKS.values():
                _asked(bench, chain, prompt, args.tokens)
        rows = []
        for task, prompt in TASKS.items():
            rounds = [[_asked(bench, chain, prompt, args.tokens) for chain in chains] for _ in range(args.rounds)]
            plain, drafts = (median(_rate(turn[number]) for turn in rounds) for number in (0, 1))
            same = all(turn[0]["text"] == turn[1]["text"] for turn in rounds)
            rows.append({
                "engine": args.engine, "task": task, "round_trip_ms": round_trip_ms, "plain_tokens_per_second": round(plain, 2),
                "drafts_tokens_per_second": round(drafts, 2), "ratio": round(drafts / plain, 3), "same_text": same,
            })  # fmt: skip
        return rows


def _asked(bench: Bench, chain: Chain, prompt: str, tokens: int) -> dict[str, Any]:
    # Greedily, a small model soon repeats itself: a story would be a text with repetitions.
    sampling = {"temperature": 1.0, "seed": 7} if prompt == TASKS["story"] else {"temperature": 0}
    body = {"model": PREFIX, "prompt": prompt, "max_tokens": tokens, **sampling}
    found: dict[str, Any] = bench.client(do="load", port=chain.port, bodies=[body], limit_s=_LIMIT_SECONDS)["streams"][0]
    return found


def _rate(answer: dict[str, Any]) -> float:
    """Tokens a second after the first one."""
    return float((answer["tokens"] - 1) / max(1e-3, (answer["ms"] - answer["first_ms"]) / 1000))


def show(rows: list[dict[str, Any]]) -> None:
    """A table for a reader."""
    table = Table("task", "round trip of a link", "tokens/s, off", "tokens/s, auto", "ratio", "same text")
    for row in rows:
        table.add_row(
            row["task"], f"{row['round_trip_ms']:g} ms", str(row["plain_tokens_per_second"]), str(row["drafts_tokens_per_second"]),
            f"{row['ratio']:.2f}", "yes" if row["same_text"] else "no",
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
