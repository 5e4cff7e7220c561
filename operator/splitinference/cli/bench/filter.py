"""What a filter saves on a served model: the same rows with the filter and without it, in turns, by one client program.

Without the filter is with `Cache-Control: no-cache`: the model itself answers. So both are measured on the same segments in one run.
The filter must be in use (`spec.filter`), and exact reuse (`spec.reuse`) off.
"""

import argparse
import json
import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitinference.cli.errors import SplitError


@dataclass(frozen=True)
class Filtered:
    """What was measured. Ratios and shares are medians over the rounds; `hop_bytes_*`: between segments a row, None without --metrics."""

    rows: int
    rounds: int
    rows_per_second: float
    rows_per_second_without: float
    ratio: float
    agreement: float
    accuracy: float | None
    accuracy_without: float | None
    hop_bytes: float | None
    hop_bytes_without: float | None


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("filter", help="a served model with its filter and without it", description=__doc__)
    parser.add_argument("--url", required=True, help="of its gateway, such as http://127.0.0.1:8080")
    parser.add_argument("--model", required=True, help="its name")
    parser.add_argument("--key", help="a key or token, if the gateway wants one")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="FILE.npz", help="x, or input_ids and attention_mask; truth [rows]: classes"
    )
    parser.add_argument(
        "--metrics", action="append", default=[], metavar="URL", help="of a segment's metrics, for bytes; once for each segment"
    )
    parser.add_argument("--clients", type=int, default=4, help="requests under way together (default 4)")
    parser.add_argument("--batch", type=int, default=16, help="rows in a request (default 16)")
    parser.add_argument("--rounds", type=int, default=5, help="how often all rows are sent each way (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        SplitError: the data or the model cannot be used.
    """
    for name in ("clients", "batch", "rounds"):
        if not 1 <= getattr(args, name) <= 10_000:
            raise SplitError(f"--{name} must be 1 to 10000, and is {getattr(args, name)}")
    found = measured(args)
    if args.json:
        print(json.dumps(asdict(found), indent=2))
        return 0
    print(f"{found.rows} rows, {found.rounds} rounds each way, {args.clients} requests of {args.batch} rows at a time:")
    print(f"  rows a second          {found.rows_per_second:10.1f} with, {found.rows_per_second_without:10.1f} without the filter")
    print(f"  ratio                  {found.ratio:10.2f}")
    if found.hop_bytes is not None and found.hop_bytes_without:
        fewer = 100 * (1 - found.hop_bytes / found.hop_bytes_without)
        print(f"  bytes between segments {found.hop_bytes:10.0f} with, {found.hop_bytes_without:10.0f} without, a row: {fewer:.1f} % fewer")
    print(f"  same class as without  {100 * found.agreement:10.1f} %")
    if found.accuracy is not None and found.accuracy_without is not None:
        print(f"  right by truth         {100 * found.accuracy:10.1f} % with, {100 * found.accuracy_without:10.1f} % without")
    return 0


def measured(args: argparse.Namespace) -> Filtered:
    """The rows are sent both ways in turns, the first way changing from round to round."""
    import numpy as np

    from splitinference.cli.filter.collect import Asking, read_inputs

    arrays = read_inputs(args.data)
    rows = len(next(iter(arrays.values())))
    with np.load(args.data, allow_pickle=False) as found:
        truth = found["truth"] if "truth" in found.files else None
    if truth is not None and truth.shape != (rows,):
        raise SplitError(f"{args.data}: truth must be the classes of {rows} rows, and has the shape {list(truth.shape)}")
    asking = Asking(args.url, args.model, args.key)
    asking.outputs(arrays, slice(0, min(args.batch, rows)), anew=True)  # the first request opens connections
    speeds: dict[bool, list[float]] = {True: [], False: []}
    hops: dict[bool, list[float]] = {True: [], False: []}
    said: dict[bool, Any] = {}
    ratios = []
    for number in range(args.rounds):
        for anew in (True, False) if number % 2 == 0 else (False, True):
            before, started = _hop_bytes(args.metrics), time.perf_counter()
            parts = [slice(at, min(at + args.batch, rows)) for at in range(0, rows, args.batch)]
            with ThreadPoolExecutor(args.clients) as pool:
                outputs = list(pool.map(lambda part, anew=anew: asking.outputs(arrays, part, anew=anew), parts))
            speeds[anew].append(rows / (time.perf_counter() - started))
            hops[anew].append((_hop_bytes(args.metrics) - before) / rows)
            said[anew] = np.concatenate(outputs).argmax(axis=1)
        ratios.append(speeds[False][-1] / speeds[True][-1])
    known = bool(args.metrics)
    return Filtered(
        rows=rows,
        rounds=args.rounds,
        rows_per_second=statistics.median(speeds[False]),
        rows_per_second_without=statistics.median(speeds[True]),
        ratio=statistics.median(ratios),
        agreement=float((said[True] == said[False]).mean()),
        accuracy=None if truth is None else float((said[False] == truth).mean()),
        accuracy_without=None if truth is None else float((said[True] == truth).mean()),
        hop_bytes=statistics.median(hops[False]) if known else None,
        hop_bytes_without=statistics.median(hops[True]) if known else None,
    )


def _hop_bytes(urls: list[str]) -> float:
    """What the segments sent on so far."""
    from splitinference.cli.filter.collect import text_of

    total = 0.0
    for url in urls:
        for line in text_of(url).splitlines():
            if line.startswith("splitinference_segment_hop_bytes_total"):
                value = float(line.rsplit(" ", 1)[1])
                total += value if math.isfinite(value) else 0.0
    return total
