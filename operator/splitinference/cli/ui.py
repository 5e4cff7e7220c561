"""`kubectl split ui`: the page in a browser, for nobody but you."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from splitinference.ui.origins.sources import Source

MOST_BYTES = 512 * 2**20


class _UnusableError(Exception):
    """What was asked for cannot be done; the message says why."""


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "ui", help="a page with nodes, pipelines and decisions, in your browser (changes nothing)", description=__doc__
    )
    parser.add_argument("-n", "--namespace", help="show this namespace alone; all that you may list if none is given")
    parser.add_argument("--kubeconfig", help="kubeconfig file; KUBECONFIG or ~/.kube/config if none is given")
    parser.add_argument(
        "--prometheus", metavar="URL", help="where the use of nodes is read; SPLITINFERENCE_PROMETHEUS_URL if none is given"
    )
    parser.add_argument(
        "--catalogue", metavar="FOLDER", help="catalogue files (*.json) beside the built-in ones, as the operator has them in a ConfigMap"
    )
    parser.add_argument("--port", type=_port, default=0, help="port on the loopback; a free one if none is given")
    parser.add_argument("--browser", action=argparse.BooleanOptionalAction, default=sys.stdout.isatty(), help="open the page in a browser")
    parser.add_argument("--what-if", action=argparse.BooleanOptionalAction, default=True, help="offer the form that asks the planner")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--simulate", metavar="TRACE", help="show a simulated cluster instead: a trace as for `simulate`")
    source.add_argument(
        "--recorded", type=Path, metavar="FILE", help="show `kubectl get splitinferences,nodes,pods,configmaps -A -o json` instead"
    )
    parser.add_argument("--speed", type=_speed, default=60.0, help="of a simulation: times real time (default 60)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C. 0: stopped; 1: the cluster or the port cannot be had; 2: bad input."""
    import asyncio
    from functools import partial

    from splitinference.controller.ports import UnavailableError
    from splitinference.ui.questions.what_if import Bounds
    from splitinference.ui.run import Listen, serve, tell_and_open

    try:
        source = _source(args)
        bounds = Bounds() if args.what_if else None
        asyncio.run(serve(source, Listen(port=args.port), what_if=bounds, told=partial(tell_and_open, browse=args.browser)))
    except _UnusableError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except UnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"Port {args.port} cannot be used: {error.strerror or error}. Choose another one with --port.\n")
        return 1
    return 0


def _source(args: argparse.Namespace) -> "Source":
    from splitinference.catalogue import CatalogueError, extended
    from splitinference.settings import Settings

    if args.simulate is not None:
        return _simulated(args)
    given = {"prometheus_url": args.prometheus, "catalogue_folder": args.catalogue}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    try:
        extended(settings.catalogue_folder)
    except CatalogueError as error:
        raise _UnusableError(f"--catalogue: {error}") from error
    if args.recorded is not None:
        from splitinference.ui.origins.sources import Recorded

        return Recorded(_items(args.recorded), settings)
    from splitinference.adapters.kubernetes.client import connect, current_namespace
    from splitinference.ui.origins.kube import LiveCluster

    return LiveCluster(connect(args.kubeconfig), settings, (args.namespace,) if args.namespace else (), current_namespace(args.kubeconfig))


def _simulated(args: argparse.Namespace) -> "Source":
    import importlib.util

    if importlib.util.find_spec("simpy") is None:
        raise _UnusableError("simpy is missing; pip install 'splitinference[simulate]'")
    from splitinference.simulation.operator_pass import NoPlanError
    from splitinference.simulation.traces.synthetic import GENERATORS
    from splitinference.simulation.traces.trace_file import TraceError, read_trace
    from splitinference.ui.origins.simulated import Simulated

    generator = GENERATORS.get(args.simulate)
    try:
        if generator is None and not Path(args.simulate).exists():
            raise _UnusableError(f"--simulate: expected a file or one of {', '.join(GENERATORS)}, is {args.simulate!r}")
        trace = read_trace(Path(args.simulate)) if generator is None else generator.make(generator.nodes, generator.hours * 3600, 1)
        return Simulated(trace, speed=args.speed)
    except (TraceError, NoPlanError) as error:
        raise _UnusableError(str(error)) from error


def _items(path: Path) -> list[dict[str, Any]]:
    """The objects of a list that kubectl wrote."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _UnusableError(f"{path} is larger than {MOST_BYTES >> 20} MiB")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise _UnusableError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise _UnusableError(f"{path} is not JSON: {str(error)[:200]}") from error
    items = content.get("items") if isinstance(content, dict) else None
    found = [item for item in items or () if isinstance(item, dict) and isinstance((item.get("metadata") or {}).get("name"), str)]
    if not found:
        raise _UnusableError(f"{path}: expected a list of objects, as `kubectl get splitinferences,nodes,pods -A -o json` writes it")
    return found


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return int(text)


def _speed(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 10_000:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and at most 10000, got {text!r}")
    return value
