"""`splitinference bench`: measurements that anyone can repeat."""

import argparse
from typing import Any

from splitinference.cli.bench import filter, secret
from splitinference.cli.bench.control import operator
from splitinference.cli.bench.loadgen import mlperf
from splitinference.cli.bench.planning import cost_model, planner, processors
from splitinference.cli.bench.segments import privacy, quantization, verification
from splitinference.cli.bench.serving import drafts, serve


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command with its parts."""
    parser = subparsers.add_parser(
        "bench",
        help="measure planner, data plane, privacy, verification, quantized weights, or the operator's own cost",
        description=__doc__,
    )
    parts = parser.add_subparsers(dest="part", required=True, metavar="PART")
    planner.register(parts)
    operator.register(parts)
    serve.register(parts)
    drafts.register(parts)
    privacy.register(parts)
    verification.register(parts)
    quantization.register(parts)
    filter.register(parts)
    secret.register(parts)
    cost_model.register(parts)
    processors.register(parts)
    mlperf.register(parts)
