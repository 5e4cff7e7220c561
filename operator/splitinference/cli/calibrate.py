"""`splitinference calibrate`: how far predicted stage times are from observed ones, and the factor per node that mends it."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from splitinference.cli.plan.input import Unusable, problem_from_file, what_is_wrong
from splitinference.core.cost.calibrate import Observed, calibrate
from splitinference.core.cost.evaluate import UnknownPlace

_OBSERVED = TypeAdapter(list[Observed])


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("calibrate", help="the cost model's error on observed stage times, and factors", description=__doc__)
    parser.add_argument("--problem", type=Path, required=True, metavar="FILE", help="the problem that the plan was made for, as JSON")
    words = 'JSON: [{"node", "start", "end", "prefill_ms", "decode_ms"}, ...]; means from the segments\' metrics'
    parser.add_argument("--observed", type=Path, required=True, metavar="FILE", help=words)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compare and print; 2 for bad input."""
    try:
        observed = _OBSERVED.validate_json(args.observed.read_bytes())
        found = calibrate(problem_from_file(args.problem), observed)
    except ValidationError as error:
        sys.stderr.write(f"{args.observed} does not hold observed stages:\n{what_is_wrong(error)}\n")
        return 2
    except (Unusable, UnknownPlace, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if args.json:
        print(json.dumps(found.model_dump(), indent=2))
        return 0
    print(f"mean absolute percentage error: {found.error_before:.1%}; with the factors below: {found.error_after:.1%}")
    for node in sorted(found.factors.keys() | found.prefill_factors.keys()):
        both = (("calibration", found.factors.get(node)), ("prefill_calibration", found.prefill_factors.get(node)))
        print(f"  {node}: {', '.join(f'{name} {factor:.3f}' for name, factor in both if factor is not None)}")
    return 0
