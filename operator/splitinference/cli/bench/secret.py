"""A chain on secret shares beside the plain chain: time, bytes and error, with two parties as processes of this machine.

The link between the parties is the loopback, so its time is left out: add a round trip for each of the rounds.
The plain chain is computed by numpy in float64.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitinference.cli.errors import SplitError

PROGRAM = [sys.executable, "-m", "splitinference.cli.main", "secret", "party"]


@dataclass(frozen=True)
class Shared:
    """Medians over the inferences; the error is the largest of all. Bytes are of one inference, without TLS; material is for each party."""

    rows: int
    inferences: int
    rounds: int
    milliseconds: float
    plain_milliseconds: float
    ratio: float
    bytes_between_parties: int
    bytes_with_client: int
    plain_bytes: int
    material_bytes: int
    dealing_milliseconds: float
    largest_error: float
    largest_output: float


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("secret", help="a chain on secret shares beside the plain chain", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="a folder of a sequential chain")
    parser.add_argument("--inferences", type=int, default=20, help="default 20")
    parser.add_argument("--rows", type=int, default=1, help="rows in each (default 1)")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and print; 2 where the model or an argument cannot do."""
    if args.inferences < 1 or args.rows < 1:
        sys.stderr.write("--inferences and --rows are at least 1\n")
        return 2
    try:
        with tempfile.TemporaryDirectory() as made:
            found = measured(args.model, Path(made) / "dealt", args.inferences, args.rows)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.json:
        print(json.dumps(asdict(found)))
        return 0
    print(
        f"on shares {found.milliseconds:.1f} ms, plain {found.plain_milliseconds:.3f} ms: {found.ratio:.0f} times, in {found.rounds} rounds"
    )
    print(f"bytes: {found.bytes_between_parties} between the parties, {found.bytes_with_client} with the client, plain {found.plain_bytes}")
    print(f"material: {found.material_bytes} bytes for each party, dealt in {found.dealing_milliseconds:.1f} ms")
    print(f"largest error {found.largest_error:.6f}, of outputs up to {found.largest_output:.2f}")
    return 0


def measured(model: Path, target: Path, inferences: int, rows: int) -> Shared:
    """Deal, start both parties, and ask. The first inference is not counted."""
    import numpy as np

    from splitinference.cli.secret.ask import ask
    from splitinference.cli.secret.chain import plain, read_chain
    from splitinference.cli.secret.store import deal

    began = time.perf_counter()
    plan = deal(model, target, count=inferences + 1, rows=rows, largest=8.0)
    dealing = (time.perf_counter() - began) / (inferences + 1)
    material = next((target / "party-0" / "material").iterdir()).stat().st_size
    chain, random = read_chain(model), np.random.default_rng(1)
    times, plain_times, errors, largest = [], [], [], 0.0
    processes: list[subprocess.Popen[str]] = []
    try:
        first = _start(processes, [str(target / "party-0"), "--listen", "127.0.0.1:0"])
        second = _start(processes, [str(target / "party-1"), "--listen", "127.0.0.1:0", "--party-0", f"127.0.0.1:{first[1]}"])
        for _ in range(inferences + 1):
            values = random.uniform(-8, 8, size=(rows, *plan.before))
            began = time.perf_counter()
            answer = ask(target / "client", (first, second), values)
            times.append(time.perf_counter() - began)
            began = time.perf_counter()
            expected = plain(chain, values.reshape(rows, -1))
            plain_times.append(time.perf_counter() - began)
            errors.append(float(np.abs(answer.outputs.reshape(rows, -1) - expected).max()))
            largest = max(largest, float(np.abs(expected).max()))
    finally:
        for process in processes:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
    shared, in_the_open = statistics.median(times[1:]), statistics.median(plain_times[1:])
    return Shared(
        rows, inferences, sum(2 if step["product"] else 9 for step in plan.steps), shared * 1e3, in_the_open * 1e3, shared / in_the_open,
        answer.between_parties, answer.with_client, 4 * rows * int(np.prod(plan.before) + np.prod(plan.after)), material,
        dealing * 1e3, max(errors), largest,
    )  # fmt: skip


def _start(processes: "list[subprocess.Popen[str]]", arguments: list[str]) -> tuple[str, int]:
    process = subprocess.Popen([*PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)
    processes.append(process)
    line = process.stdout.readline() if process.stdout is not None else ""
    if "listens on" not in line:
        raise SplitError("a party did not start; its message is above")
    return "127.0.0.1", int(line.rpartition(":")[2])
