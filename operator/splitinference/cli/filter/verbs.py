"""Train a filter that answers for a model where its answer is known, see what one does to other inputs, or ask a model for its answers.

The data is a .npz file of numpy with inputs (x, input_ids or features) and outputs, what the model gave for them (or y, the classes)."""

import argparse
import json
from pathlib import Path
from typing import Any

from splitinference.cli.errors import SplitError

_TABLE = (1.0, 0.999, 0.99, 0.98, 0.95, 0.9)


def register(subparsers: Any) -> None:
    """Add the verb and its parts to the command line."""
    parser = subparsers.add_parser("filter", help="train a filter before a model, or measure one", description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True, metavar="train | eval | collect")
    train = parts.add_parser("train", help="fit a filter and pick its threshold", description="Fit a filter and pick its threshold.")
    train.add_argument("--mode", choices=("Skip", "Reuse"), default="Skip", help="skip the useless class, or reuse near answers")
    train.add_argument("--class", dest="useless", type=int, help="of Skip: the useless class, the index of the model's largest output")
    train.add_argument("--accuracy", type=float, default=0.95, help="least share of rows whose answer stays right, 0..1 (default 0.95)")
    train.add_argument("--recall", type=float, help="of Skip: least share of useful rows that still run, 0..1 (default 0.9)")
    train.add_argument("--hidden", type=int, help="units of the hidden layer, 0 for none (default 16; to skip by tokens 0)")
    train.add_argument("--entries", type=int, help="of Reuse: earlier rows that are kept (default 256)")
    train.add_argument("--seed", type=int, default=0, help="of the parting of the rows and the start of the fit (default 0)")
    train.add_argument("-o", "--output", type=Path, default=Path("filter.json"), help="where to write the filter (default filter.json)")
    measure = parts.add_parser("eval", help="measure a filter on other inputs", description="Measure a filter on other inputs.")
    measure.add_argument("--filter", type=Path, required=True, help="a file that train wrote")
    for each in (train, measure):
        each.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="labelled inputs")
        each.add_argument("--json", action="store_true", help="as JSON")
        each.set_defaults(run=run)
    collect = parts.add_parser("collect", help="ask a served model for its answers", description="Ask a served model for its answers.")
    collect.add_argument("--url", required=True, help="of its gateway, such as http://127.0.0.1:8080")
    collect.add_argument("--model", required=True, help="its name")
    collect.add_argument("--key", help="a key or token, if the gateway wants one")
    collect.add_argument("--data", type=Path, required=True, metavar="FILE.npz", help="inputs: x, or input_ids and attention_mask")
    collect.add_argument("-o", "--output", type=Path, default=Path("labelled.npz"), help="where to write (default labelled.npz)")
    collect.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Do it. 0; 1 where no filter keeps the accuracy.

    Raises:
        SplitError: the data, the filter or the model cannot be used.
    """
    try:
        import numpy as np  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise SplitError(f"{error.name} is missing: pip install 'splitinference[calibrate]'") from error
    if args.part == "collect":
        from splitinference.cli.filter.collect import collected

        print(collected(args.url, args.model, args.key, args.data, args.output))
        return 0
    return _train(args) if args.part == "train" else _eval(args)


def _train(args: argparse.Namespace) -> int:
    from splitinference.cli.filter.labelled import check_classes, check_varied, read_labelled
    from splitinference_protocol.input_filter import FilterError, read_filter

    _check(args)
    data = read_labelled(args.data)
    if args.mode == "Skip":
        check_classes(data, args.useless, args.data)
    else:
        check_varied(data, args.data)
    made, test = _skip(args, data) if args.mode == "Skip" else _reuse(args, data)
    if made is None:
        return 1
    try:
        text = json.dumps(made.as_json())
        read_filter(text)
    except FilterError as error:
        raise SplitError(f"the gateway would refuse this filter: {error}") from error
    args.output.write_text(text, encoding="utf-8")
    _tell(args, made, test, f"{args.output}: On {test.rows} rows that the fit has not seen:")
    return 0


def _check(args: argparse.Namespace) -> None:
    from splitinference_protocol.input_filter import MOST_ENTRIES, MOST_HIDDEN

    of_skip, of_reuse = {"--class": args.useless, "--recall": args.recall}, {"--entries": args.entries}
    for name, value in (of_reuse if args.mode == "Skip" else of_skip).items():
        if value is not None:
            raise SplitError(f"{name} has no meaning with --mode {args.mode}")
    if args.mode == "Skip" and args.useless is None:
        raise SplitError("--mode Skip needs --class, the useless class")
    for name, value in (("accuracy", args.accuracy), ("recall", args.recall)):
        if value is not None and not 0 < value < 1:
            raise SplitError(f"--{name} must be between 0 and 1, and is {value:g}")
    if args.hidden is not None and not 0 <= args.hidden <= MOST_HIDDEN:
        raise SplitError(f"--hidden must be 0 to {MOST_HIDDEN}, and is {args.hidden}")
    if args.entries is not None and not 1 <= args.entries <= MOST_ENTRIES:
        raise SplitError(f"--entries must be 1 to {MOST_ENTRIES}, and is {args.entries}")


def _skip(args: argparse.Namespace, data: Any) -> tuple[Any, Any]:
    """The filter, or None and why; and the rows to report on."""
    from dataclasses import replace

    from splitinference.cli.filter import train
    from splitinference_protocol.input_filter import Of

    hidden = args.hidden if args.hidden is not None else 0 if data.of is Of.TOKENS else 16
    recall = 0.9 if args.recall is None else args.recall
    fit, pick, test = train.parted(data, args.seed)
    made = train.skipping(fit, args.useless, hidden, args.seed)
    useless = pick.classes == args.useless
    point = train.threshold_for(args.accuracy, recall, train.probabilities(made, pick), useless)
    if point is None:
        wanted = f"an accuracy of {args.accuracy:g} and a recall of {recall:g}"
        useful = int((~useless).sum())
        print(f"No threshold keeps {wanted} with 95 % confidence on {pick.rows} rows ({useful} useful ones), so no filter was written.")
        print("Give more rows, or a lower --accuracy or --recall.")
        return None, test
    return replace(made, threshold=point.threshold), test


def _reuse(args: argparse.Namespace, data: Any) -> tuple[Any, Any]:
    from dataclasses import replace

    from splitinference.cli.filter import reuse, train
    from splitinference_protocol.input_filter import Of

    if data.of is Of.LAYERS:
        raise SplitError("mode Reuse is of x or input_ids: the gateway runs it, and has nothing of the layers")
    hidden = 16 if args.hidden is None else args.hidden
    if not hidden and data.of is Of.TOKENS:
        raise SplitError("--hidden must be at least 1 to reuse by tokens")
    fit, pick, test = train.parted_in_order(data)
    made = reuse.reusing(fit, hidden, args.entries or 256, args.seed)
    point = reuse.distance_for(made, args.accuracy, pick)
    if point is None:
        print(f"No distance keeps an accuracy of {args.accuracy:g} with 95 % confidence on {pick.rows} rows, so no filter was written.")
        print("Give more rows, in the order in which they came, or a lower --accuracy.")
        return None, test
    return replace(made, distance=point.threshold), test


def _eval(args: argparse.Namespace) -> int:
    from splitinference.cli.filter.labelled import check_classes, read_labelled
    from splitinference_protocol.input_filter import FilterError, InputFilter, read_filter

    try:
        made = read_filter(args.filter.read_bytes())
    except (OSError, FilterError) as error:
        raise SplitError(f"{args.filter}: {error}") from error
    data = read_labelled(args.data)
    data.check_for(made.features, args.data)
    if isinstance(made, InputFilter):
        check_classes(data, made.useless, args.data)
    _tell(args, made, data, f"{args.filter}: On {data.rows} rows:")
    return 0


def _tell(args: argparse.Namespace, made: Any, data: Any, head: str) -> None:
    from splitinference_protocol.input_filter import InputFilter

    if isinstance(made, InputFilter):
        _tell_skip(args, made, data, head)
    else:
        _tell_reuse(args, made, data, head)


def _tell_reuse(args: argparse.Namespace, made: Any, data: Any, head: str) -> None:
    from splitinference.cli.filter import reuse

    point = reuse.replayed(made, data)
    if args.json:
        told = {"rows": data.rows, "distance": made.distance, "entries": made.entries, "passRate": point.pass_rate}
        print(json.dumps({**told, "accuracy": point.accuracy, "leastAccuracy": point.least_accuracy}, indent=2))
        return
    print(f"{head} distance {made.distance:.4g}, {made.entries} earlier rows, in the order of the file")
    print(f"  rows that run        {100 * point.pass_rate:6.1f} %   ({1 / max(point.pass_rate, 1 / data.rows):.1f} times fewer)")
    print(f"  accuracy             {100 * point.accuracy:6.1f} %   (at least {100 * point.least_accuracy:.1f} % with 95 % confidence)")


def _tell_skip(args: argparse.Namespace, made: Any, data: Any, head: str) -> None:
    from splitinference.cli.filter import train

    found, useless = train.probabilities(made, data), data.classes == made.useless
    share, point = float(useless.mean()), train.at(made.threshold, found, useless)
    rows = [(wanted, train.threshold_for(wanted, 0.0, found, useless)) for wanted in _TABLE]
    skipped = 1 - point.pass_rate
    if args.json:
        told = {
            "rows": data.rows, "useless": share, "area": train.area(found, useless), "threshold": made.threshold,
            "passRate": point.pass_rate, "accuracy": point.accuracy, "leastAccuracy": point.least_accuracy, "recall": point.recall,
            "filterability": skipped / share,
            "table": [{"accuracy": wanted, "passRate": each.pass_rate if each else 1.0} for wanted, each in rows],
        }  # fmt: skip
        print(json.dumps(told, indent=2))
        return
    print(f"{head} threshold {made.threshold:.4f}")
    print(f"  useless rows         {100 * share:6.1f} %   (more can never be skipped rightly)")
    fewer = 1 / max(point.pass_rate, 1 / data.rows)
    print(f"  rows that pass       {100 * point.pass_rate:6.1f} %   ({fewer:.1f} times fewer for the segments)")
    print(f"  accuracy             {100 * point.accuracy:6.1f} %   (at least {100 * point.least_accuracy:.1f} % with 95 % confidence)")
    print(f"  useful rows that run {100 * point.recall:6.1f} %   (at least {100 * point.least_recall:.1f} % with 95 % confidence)")
    print(f"  filterability        {100 * skipped / share:6.1f} %   (skipped rows by useless rows)")
    print(f"  area under the curve {train.area(found, useless):6.3f}")
    print("  accuracy wanted, whatever the recall → rows that pass (95 % confidence):")
    print("   " + ", ".join(f" {100 * wanted:g} % → {100 * (each.pass_rate if each else 1):.0f} %" for wanted, each in rows))
