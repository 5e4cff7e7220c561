"""Train a filter that skips inputs whose answer will be the useless class, or see what one does to other inputs.

The data is a .npz file of numpy with x, the inputs, and outputs, what the model gave for them (or y, the classes)."""

import argparse
import json
from pathlib import Path
from typing import Any

from splitinference.cli.errors import SplitError

_TABLE = (1.0, 0.999, 0.99, 0.98, 0.95, 0.9)


def register(subparsers: Any) -> None:
    """Add the verb and its parts to the command line."""
    parser = subparsers.add_parser("filter", help="train a filter that skips inputs, or measure one", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="train | eval")
    train = parts.add_parser("train", help="fit a filter and pick its threshold", description="Fit a filter and pick its threshold.")
    train.add_argument(
        "--class", dest="useless", type=int, required=True, help="the useless class: the index of the model's largest output"
    )
    train.add_argument("--accuracy", type=float, default=0.95, help="least share of rows whose answer stays right, 0..1 (default 0.95)")
    train.add_argument("--recall", type=float, default=0.9, help="least share of useful rows that still run, 0..1 (default 0.9)")
    train.add_argument("--hidden", type=int, default=16, help="units of the hidden layer, 0 for none (default 16)")
    train.add_argument("--seed", type=int, default=0, help="of the parting of the rows and the start of the fit (default 0)")
    train.add_argument("-o", "--output", type=Path, default=Path("filter.json"), help="where to write the filter (default filter.json)")
    measure = parts.add_parser("eval", help="measure a filter on other inputs", description="Measure a filter on other inputs.")
    measure.add_argument("--filter", type=Path, required=True, help="a file that train wrote")
    for each in (train, measure):
        each.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="labelled inputs")
        each.add_argument("--json", action="store_true", help="as JSON")
        each.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it. 0; 1 where no filter keeps the accuracy.

    Raises:
        SplitError: the data or the filter cannot be used.
    """
    try:
        import numpy as np  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise SplitError(f"{error.name} is missing: pip install 'splitinference[calibrate]'") from error
    return _train(args) if args.part == "train" else _eval(args)


def _train(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from splitinference.cli.filter import train
    from splitinference.cli.filter.labelled import read_labelled
    from splitinference_protocol.input_filter import MOST_HIDDEN, FilterError, read_filter

    for name, value in (("accuracy", args.accuracy), ("recall", args.recall)):
        if not 0 < value < 1:
            raise SplitError(f"--{name} must be between 0 and 1, and is {value:g}")
    if not 0 <= args.hidden <= MOST_HIDDEN:
        raise SplitError(f"--hidden must be 0 to {MOST_HIDDEN}, and is {args.hidden}")
    fit, pick, test = train.parted(read_labelled(args.data, args.useless), args.seed)
    made = train.fitted(fit, args.useless, args.hidden, args.seed)
    point = train.threshold_for(args.accuracy, args.recall, train.probabilities(made, pick.x), pick.useless)
    if point is None:
        wanted = f"an accuracy of {args.accuracy:g} and a recall of {args.recall:g}"
        useful = int((~pick.useless).sum())
        print(f"No threshold keeps {wanted} with 95 % confidence on {pick.rows} rows ({useful} useful ones), so no filter was written.")
        print("Give more rows, or a lower --accuracy or --recall.")
        return 1
    made = replace(made, threshold=point.threshold)
    try:
        text = json.dumps(made.as_json())
        read_filter(text)
    except FilterError as error:
        raise SplitError(f"the gateway would refuse this filter: {error}") from error
    args.output.write_text(text, encoding="utf-8")
    _tell(args, made, test, f"{args.output}: threshold {point.threshold:.4f}. On {test.rows} rows that the fit has not seen:")
    return 0


def _eval(args: argparse.Namespace) -> int:
    from splitinference.cli.filter.labelled import read_labelled
    from splitinference_protocol.input_filter import FilterError, read_filter

    try:
        made = read_filter(args.filter.read_bytes())
    except (OSError, FilterError) as error:
        raise SplitError(f"{args.filter}: {error}") from error
    data = read_labelled(args.data, made.useless)
    if data.x.shape[1] != made.inputs:
        raise SplitError(f"the filter takes {made.inputs} values a row, {args.data} has {data.x.shape[1]}")
    _tell(args, made, data, f"{args.filter}: threshold {made.threshold:.4f}. On {data.rows} rows:")
    return 0


def _tell(args: argparse.Namespace, made: Any, data: Any, head: str) -> None:
    from splitinference.cli.filter import train

    found = train.probabilities(made, data.x)
    share, point = float(data.useless.mean()), train.at(made.threshold, found, data.useless)
    rows = [(wanted, train.threshold_for(wanted, 0.0, found, data.useless)) for wanted in _TABLE]
    skipped = 1 - point.pass_rate
    if args.json:
        told = {
            "rows": data.rows, "useless": share, "area": train.area(found, data.useless), "threshold": made.threshold,
            "passRate": point.pass_rate, "accuracy": point.accuracy, "leastAccuracy": point.least_accuracy, "recall": point.recall,
            "filterability": skipped / share,
            "table": [{"accuracy": wanted, "passRate": each.pass_rate if each else 1.0} for wanted, each in rows],
        }  # fmt: skip
        print(json.dumps(told, indent=2))
        return
    print(head)
    print(f"  useless rows         {100 * share:6.1f} %   (more can never be skipped rightly)")
    fewer = 1 / max(point.pass_rate, 1 / data.rows)
    print(f"  rows that pass       {100 * point.pass_rate:6.1f} %   ({fewer:.1f} times fewer for the segments)")
    print(f"  accuracy             {100 * point.accuracy:6.1f} %   (at least {100 * point.least_accuracy:.1f} % with 95 % confidence)")
    print(f"  useful rows that run {100 * point.recall:6.1f} %   (at least {100 * point.least_recall:.1f} % with 95 % confidence)")
    print(f"  filterability        {100 * skipped / share:6.1f} %   (skipped rows by useless rows)")
    print(f"  area under the curve {train.area(found, data.useless):6.3f}")
    print("  accuracy wanted, whatever the recall → rows that pass (95 % confidence):")
    print("   " + ", ".join(f" {100 * wanted:g} % → {100 * (each.pass_rate if each else 1):.0f} %" for wanted, each in rows))
