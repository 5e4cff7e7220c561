"""`splitinference calibrate`: how far predicted stage times are from observed ones, and the factors per node that mend it."""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from splitinference import catalogue
from splitinference.cli.plan.input import UnusableError, problem_from_file, what_is_wrong
from splitinference.core.cost.evaluate import UnknownPlaceError
from splitinference.core.cost.fitting.calibrate import StageObservation, calibrate
from splitinference.core.cost.fitting.catalogue import Catalogue, Entry, Nominal
from splitinference.core.cost.fitting.fit import fitted
from splitinference.core.cost.fitting.rows import Row
from splitinference.core.values.profile import Profile

_OBSERVED = TypeAdapter(list[StageObservation])


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("calibrate", help="the cost model's error on observed stage times, and factors", description=__doc__)
    parser.add_argument("--problem", type=Path, metavar="FILE", help="the problem that the plan was made for, as JSON")
    words = 'JSON: [{"node", "start", "end", "prefill_ms", "decode_ms"}, ...]; means from the segments\' metrics'
    parser.add_argument("--observed", type=Path, metavar="FILE", help=words)
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(run=run, usage=parser.error)
    parts = parser.add_subparsers(dest="part", metavar="fit")
    fit = parts.add_parser("fit", help="a catalogue entry from measured rows", description=_fit.__doc__)
    fit.add_argument("rows", type=Path, metavar="ROWS", help=f"CSV with the columns {', '.join(Row.model_fields)} (source may be left out)")
    fit.add_argument(
        "--profile", type=Path, action="append", default=[], metavar="FILE", help="profile of a model that the rows name; repeatable"
    )
    fit.add_argument("--gflops", type=_positive, help="nominal compute of the processor, where the catalogue does not know it")
    fit.add_argument("--gbps", type=_positive, help="nominal memory bandwidth, GB/s")
    fit.add_argument("--write", type=Path, metavar="FILE", help="where to write the catalogue; without, it is printed")
    fit.set_defaults(run=_fit)


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return value


def _fit(args: argparse.Namespace) -> int:
    """Fit the cost model's efficiencies to measured rows of one or several processors and engines; print them as a catalogue. Exit status
    2 for bad input. Needs the extra `calibrate` of the package."""
    try:
        made = _catalogue(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"{args.rows}: {what_is_wrong(error) if isinstance(error, ValidationError) else error}\n")
        return 2
    text = made.model_dump_json(indent=1, exclude_defaults=True) + "\n"
    if args.write:
        try:
            args.write.write_text(text, encoding="utf-8")
        except OSError as error:
            sys.stderr.write(f"{error}\n")
            return 2
    else:
        sys.stdout.write(text)
    return 0


def _catalogue(args: argparse.Namespace) -> Catalogue:
    rows = catalogue.rows_from(args.rows.read_text("utf-8"))
    if not rows:
        raise ValueError("there is no row")
    models = dict(catalogue.models())
    for path in args.profile:
        profile = Profile.model_validate_json(path.read_bytes())
        models[profile.model] = tuple((1, layer) for layer in profile.layers)
    processors, entries = {}, []
    by_place: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_place.setdefault((row.processor, row.engine), []).append(row)
    for (processor, engine), found in sorted(by_place.items()):
        nominal = _nominal(processor, args)
        source = f"{len(found)} rows of {engine} from {', '.join(sorted({row.source for row in found} - {''})) or args.rows.name}"
        try:
            efficiency = fitted(found, models, nominal, source[:300])
        except ValueError as error:
            raise ValueError(f"{processor}, {engine}: {error}") from None
        processors[processor] = nominal
        entries.append(Entry(processor=processor, engine=engine, rows=len(found), efficiency=efficiency))
        for phase, reached in (("prefill", efficiency.prefill), ("decode", efficiency.decode)):
            known = "too few rows" if reached.spread is None else f"nine of ten rows within {reached.spread:.0%}"
            sys.stderr.write(f"{processor}, {engine}, {phase}: {known}\n")
    return Catalogue(processors=processors, entries=tuple(entries))


def _nominal(processor: str, args: argparse.Namespace) -> Nominal:
    known = catalogue.built_in()
    name = known.name_of(processor)
    if args.gflops and args.gbps:
        return Nominal(
            flops_per_s=args.gflops * 1e9, memory_bandwidth_bytes_per_s=args.gbps * 1e9, source="given when the rows were fitted"
        )
    if args.gflops or args.gbps:
        raise ValueError("--gflops and --gbps go together")
    if name is None:
        raise ValueError(f"the catalogue does not know processor {processor!r}: give --gflops and --gbps")
    return known.processors[name].model_copy(update={"aliases": ()})


def run(args: argparse.Namespace) -> int:
    """Compare and print; 2 for bad input."""
    if args.problem is None or args.observed is None:
        args.usage("--problem and --observed are needed (or the part `fit`)")
    try:
        observed = _OBSERVED.validate_json(args.observed.read_bytes())
        found = calibrate(problem_from_file(args.problem), observed)
    except ValidationError as error:
        sys.stderr.write(f"{args.observed} does not hold observed stages:\n{what_is_wrong(error)}\n")
        return 2
    except (UnusableError, UnknownPlaceError, ValueError, OSError) as error:
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
