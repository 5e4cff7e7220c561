"""`splitinference secret deal | party | ask`: a small generic chain on two nodes, neither of which can read inputs, outputs or weights.

Deal on a trusted machine, copy each folder to its owner, start a party on each of two nodes that nobody administers both of, and ask.
The protocol is our own after published ones, and was not audited. docs/how-to/secret-shares.md says what it protects and what not.
"""

import argparse
import sys
import threading
from pathlib import Path
from typing import Any

from splitinference.cli.errors import SplitError


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("secret", help="a chain on secret shares", description=__doc__)
    parts = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    deal = parts.add_parser("deal", help="make shares of the weights, and material for a number of inferences")
    deal.add_argument("model", type=Path, metavar="MODEL", help="a folder of a sequential chain")
    deal.add_argument("target", type=Path, metavar="TARGET", help="the folder to make; it must not exist")
    deal.add_argument("--count", type=int, default=100, help="inferences (default 100)")
    deal.add_argument("--rows", type=int, default=1, help="the most rows in one inference (default 1)")
    deal.add_argument(
        "--largest-input", type=float, default=16.0, metavar="X", help="the largest size of a number in an input (default 16)"
    )
    deal.set_defaults(run=_deal)
    party = parts.add_parser("party", help="serve as one of the two parties")
    party.add_argument("folder", type=Path, metavar="FOLDER", help="party-0 or party-1 of the dealer's folder")
    party.add_argument("--listen", default="127.0.0.1:7070", metavar="ADDRESS:PORT", help="default 127.0.0.1:7070")
    party.add_argument("--party-0", metavar="ADDRESS:PORT", help="where party 0 is; party 1 alone needs it")
    party.set_defaults(run=_party)
    ask = parts.add_parser("ask", help="compute outputs for rows of a file")
    ask.add_argument("folder", type=Path, metavar="FOLDER", help="client of the dealer's folder")
    ask.add_argument("--parties", nargs=2, required=True, metavar="ADDRESS:PORT", help="party 0 and party 1")
    ask.add_argument("--input", type=Path, required=True, metavar="FILE.npy", help="numbers of shape [rows, ...]")
    ask.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.npy", help="the outputs")
    ask.set_defaults(run=_ask)


def _deal(args: argparse.Namespace) -> int:
    from splitinference.cli.secret.store import deal

    if not 1 <= args.count <= 1_000_000 or not 1 <= args.rows <= 4096 or not 0 < args.largest_input < 2.0**30:
        sys.stderr.write("--count is from 1 to 1000000, --rows from 1 to 4096, --largest-input from 0 to 2^30\n")
        return 2
    try:
        deal(args.model, args.target, count=args.count, rows=args.rows, largest=args.largest_input)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    size = sum(file.stat().st_size for file in (args.target / "party-0" / "material").iterdir())
    print(f"{args.target} has material for {args.count} inferences of up to {args.rows} rows: {size / 1e6:.1f} MB for each party.")
    print("Move party-0, party-1 and client to their three owners, and delete them here. Who has both parties' folders can read inputs.")
    return 0


def _party(args: argparse.Namespace) -> int:
    from splitinference.cli.secret.serve import Server

    number = {"party-0": 0, "party-1": 1}.get(args.folder.resolve().name)
    if number is None or (args.party_0 is None) == (number == 1):
        sys.stderr.write("FOLDER is named party-0 or party-1, and party-1 alone takes --party-0\n")
        return 2
    try:
        other = None if args.party_0 is None else _address(args.party_0)
        server = Server(args.folder, number, _address(args.listen), other)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    print(f"party-{number} listens on {server.address[0]}:{server.address[1]}", flush=True)
    serving = threading.Thread(target=server.run, daemon=True)
    serving.start()
    serving.join()
    return 0


def _ask(args: argparse.Namespace) -> int:
    import numpy as np

    from splitinference.cli.secret.ask import ask
    from splitinference.cli.secret.link import LinkError
    from splitinference.cli.secret.store import NoMaterialError

    try:
        rows = np.load(args.input, allow_pickle=False)
        first, second = (_address(given) for given in args.parties)
        answer = ask(args.folder, (first, second), rows)
        np.save(args.output, answer.outputs)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (LinkError, NoMaterialError) as error:
        raise SplitError(str(error)) from error
    print(f"{args.output} has outputs of shape {list(answer.outputs.shape)}. Material for {answer.left} more inferences is left.")
    return 0


def _address(given: str) -> tuple[str, int]:
    host, _, port = given.rpartition(":")
    if not host or not port.isdigit() or not int(port) < 65536:
        raise ValueError(f"{given!r} is no ADDRESS:PORT")
    return host.strip("[]"), int(port)
