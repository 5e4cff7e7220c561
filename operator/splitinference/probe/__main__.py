"""`python -m splitinference.probe`: one node's link probe, as the chart's DaemonSet runs it."""

import argparse
import asyncio
import logging
import signal
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, start_http_server

from splitinference.probe.board import Board
from splitinference.probe.rounds import LEAST_BURST, Pace, Rounds
from splitinference.probe.wire import NODE_NAME, Station


def main(words: Sequence[str] | None = None) -> int:
    """Run until SIGTERM; 0."""
    asyncio.run(_run(parser().parse_args(words)))
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    pace = Pace()
    parser = argparse.ArgumentParser(prog="python -m splitinference.probe", description=__doc__)
    parser.add_argument("--node", type=_node, required=True, help="name of this node")
    parser.add_argument("--peers", required=True, help="host name that resolves to all probes, such as a headless Service's")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen at (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8083, help="where probes meet (default: %(default)s)")
    parser.add_argument("--metrics-port", type=int, default=8082, help="for Prometheus (default: %(default)s)")
    parser.add_argument("--interval", type=_seconds, default=pace.interval_s, help="s between round trips to a node (default: %(default)s)")
    parser.add_argument("--burst-bytes", type=_burst, default=pace.burst_bytes, help="largest burst (default: %(default)s)")
    parser.add_argument(
        "--burst-interval", type=_seconds, default=pace.burst_every_s, help="least s between bursts to one (default: %(default)s)"
    )
    parser.add_argument(
        "--budget", type=_bytes, default=pace.budget_bytes_per_minute, help="bytes of bursts a minute; 0: none (default: %(default)s)"
    )
    parser.add_argument("--keep", type=_seconds, default=300.0, help="values are shown for so many s (default: %(default)s)")
    return parser


async def _run(given: argparse.Namespace) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    pace = Pace(given.interval, given.burst_bytes, given.burst_interval, given.budget)
    station, board, registry = Station(given.node, 2 * given.burst_bytes), Board(given.node, given.keep), CollectorRegistry()
    registry.register(board)
    start_http_server(given.metrics_port, addr=given.host, registry=registry)
    task = asyncio.current_task()
    assert task is not None  # noqa: S101
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with await station.serve(given.host, given.port):
        try:
            await Rounds(station, board, given.peers, given.port, pace).run()
        except asyncio.CancelledError:
            return


def _node(text: str) -> str:
    if not NODE_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no node's name")
    return text


def _seconds(text: str) -> float:
    if not 0 < (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not more than 0 seconds")
    return number


def _bytes(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text} bytes are less than none")
    return number


def _burst(text: str) -> int:
    if (number := int(text)) < LEAST_BURST:
        raise argparse.ArgumentTypeError(f"a burst has at least {LEAST_BURST} bytes, not {text}")
    return number


if __name__ == "__main__":
    raise SystemExit(main())
