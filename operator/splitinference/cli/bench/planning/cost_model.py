"""`splitinference bench cost-model`: the cost model's errors on measured rows of many processors, before and after fitting."""

import argparse
import json
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from splitinference import catalogue
from splitinference.core.cost.fitting.errors import METHODS, Errors, errors


def register(parts: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    words = "the cost model's errors on measured rows, before and after fitting"
    parser = parts.add_parser("cost-model", help=words, description=__doc__)
    parser.add_argument("--by-processor", action="store_true", help="a group for each processor of a source, not one for each source")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fit, compare and print; 2 where scipy is missing."""
    try:
        found = errors(
            catalogue.rows(),
            catalogue.models(),
            catalogue.built_in(),
            by=lambda row: f"{row.source} {row.processor}" if args.by_processor else row.source,
        )
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.json:
        print(json.dumps({"methods": METHODS, "sources": catalogue.sources(), "errors": [e.model_dump() for e in found]}, indent=2))
        return 0
    to = Console()
    to.print(_table(found))
    for method, words in METHODS.items():
        to.print(f"{method}: {words}", markup=False)
    return 0


def _table(found: list[Errors]) -> Table:
    result = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("ROWS OF", "PHASE", "METHOD", "ROWS", "MEDIAN", "WORST"):
        result.add_column(name)
    for each in found:
        worst = f"{each.lowest:+.0%} to {each.highest:+.0%}"
        result.add_row(each.group, each.phase, each.method, str(each.rows), f"{each.median:.1%}", worst)
    return result
