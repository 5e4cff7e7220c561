"""`kubectl split logs`: logs of all segments and the gateway of one resource, merged by time, each line with who wrote it."""

import heapq
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from splitinference.cli.connection import COMPONENT, Connection, complete_names, connection_of, connection_options
from splitinference.cli.errors import SplitError, in_sentences
from splitinference.cli.live.log_requests import RequestId, about, ids_of

Json = Mapping[str, Any]
_COMPONENTS = ("segment", "gateway", "verifier")
_COLORS = ("cyan", "yellow", "green", "magenta", "blue", "red")
_LOOK_SECONDS = 2.0
_SILENT_SECONDS = 3600.0
_MOST_WAITING = 10_000
"""Lines that wait to be printed; who writes more waits."""
_TAIL = 100
_DURATION = re.compile(r"^(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?$")
_HELP = """Logs of all segments and the gateway of NAME, merged by time.

Each line has a prefix: the gateway, or the layers and the node of a segment. Without -f the last lines of each pod are printed (--tail).
With -f segments that come later join in.

--request shows the lines of one request: its ID is the header X-Request-Id of the answer. Without -f, an X-Request-Id that the client sent
works, too, if logs are JSON (the chart's logging.format).
"""


class Duration(click.ParamType[int]):
    """Such as 90s, 5m or 1h30m, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds."""
        found = _DURATION.match(str(value))
        hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
        if not (total := hours * 3600 + minutes * 60 + seconds):
            self.fail(f"expected a duration such as 90s, 5m or 1h30m, got {value!r}", param, ctx)
        return total


@dataclass(frozen=True)
class Source:
    """One container's log. `order`: gateway first, then by layers."""

    namespace: str
    pod: str
    container: str
    label: str
    order: tuple[int, int]


@click.command("logs", help=_HELP)
@click.argument("name", shell_complete=complete_names)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("--tail", type=click.IntRange(-1), default=None, help="Lines of each pod; -1: all.  [default: 100; all with --request]")
@click.option("--since", type=Duration(), help="Only what is younger, such as 90s, 5m or 1h.")
@click.option("--previous", is_flag=True, help="Of the containers that ran before the present ones.")
@click.option("--timestamps", is_flag=True, help="With the time of each line.")
@click.option("--request", type=RequestId(), help="Only lines about the request with this ID.")
@click.option("--only", type=click.Choice(_COMPONENTS), multiple=True, help="Only these; may be repeated.")
@connection_options
def command(name: str, follow: bool, only: tuple[str, ...], timestamps: bool, **options: Any) -> int:
    """Read and print."""
    tail, since, previous, request = (options.pop(option) for option in ("tail", "since", "previous", "request"))
    tail = tail if tail is not None else -1 if request else _TAIL
    connection = connection_of(options)
    connection.resources(name)  # an unknown name is said before pods are looked for
    query = {"timestamps": "true"}
    query |= {"tailLines": str(tail)} if tail >= 0 else {}
    query |= {"sinceSeconds": str(since)} if since else {}
    query |= {"previous": "true"} if previous else {}
    with in_sentences():
        sources = sources_of(connection.pods(name), only or _COMPONENTS)
    if not sources and not follow:
        raise SplitError(f"{name} has no pods whose logs could be read.", f"Why not: kubectl split status {name}")
    # Without -f, IDs that clients gave are looked up first.
    printer = Printer(timestamps, max((len(source.label) for source in sources), default=8), request if follow else None)
    if follow:
        _follow(connection, name, only or _COMPONENTS, query, printer)
        return 0
    logs, failed = {}, []
    for source in sources:
        try:
            with in_sentences():
                logs[source] = list(_lines(connection, source, query, None))
        except SplitError as error:
            failed.append(error)
            printer.note(f"{source.pod}: {error.format_message()}")
    if request:
        found = _of_request(request, logs)
        if not any(found.values()):
            printer.note(
                f"No line is about the request {request}. Logs may have been rotated since; --previous reads those before a restart."
            )
            return 1
        logs = found
    for source, line in merged(logs):
        printer.line(source, line)
    return 1 if failed and not logs else 0


def _of_request(request: str, logs: Mapping[Source, Sequence[str]]) -> dict[Source, list[str]]:
    """The lines about one request. Each line begins with its time."""
    ids = ids_of(request, (_text(line) for lines in logs.values() for line in lines))
    return {source: [line for line in lines if about(ids, _text(line))] for source, lines in logs.items()}


def _text(line: str) -> str:
    return line.partition(" ")[2]


def sources_of(pods: Sequence[Json], components: Sequence[str]) -> list[Source]:
    """The containers to read, gateway first and then by layers. A pod that has not started has no log yet."""
    found = []
    for pod in pods:
        about, labels = pod["metadata"], pod["metadata"].get("labels") or {}
        component = labels.get(COMPONENT, "")
        if component not in components or (pod.get("status") or {}).get("phase") not in ("Running", "Succeeded", "Failed"):
            continue
        names = [str(container["name"]) for container in (pod.get("spec") or {}).get("containers") or ()]
        container = component if component in names else names[0]
        start, _, end = str(labels.get("splitinference.dev/layers", "")).partition("-")
        node = str((pod.get("spec") or {}).get("nodeName") or "?")
        label = f"{start}:{end} {node}" if start.isdecimal() and end else f"{component} {node}"
        label = f"verifier {label}" if component == "verifier" and start else label
        order = (_COMPONENTS.index(component) if component != "gateway" else -1, int(start) if start.isdecimal() else 0)
        found.append(Source(str(about["namespace"]), str(about["name"]), container, label, order))
    return sorted(found, key=lambda source: (source.order, source.pod))


def _lines(connection: Connection, source: Source, query: Mapping[str, str], silent_seconds: float | None) -> Iterator[str]:
    asked = {**query, "container": source.container}
    for line in connection.cluster.log_lines(source.namespace, source.pod, asked, silent_seconds):
        yield line.decode("utf-8", "replace")


def merged(logs: Mapping[Source, Sequence[str]]) -> Iterator[tuple[Source, str]]:
    """Lines of all logs by their times. Within one log the order stays."""
    streams = [
        [(line.partition(" ")[0], index, source.pod, source, line) for line in lines] for index, (source, lines) in enumerate(logs.items())
    ]
    yield from ((entry[3], entry[4]) for entry in heapq.merge(*streams, key=lambda entry: (entry[0], entry[1])))


class Printer:
    """Prints lines with who wrote them, each writer in a color of its own where there is a terminal."""

    def __init__(self, timestamps: bool, width: int, request: str | None = None) -> None:
        """`width`: columns of the prefix; `request`: only lines about the request with this ID."""
        self._timestamps, self._width, self._colors = timestamps, width, dict[str, str]()
        self._ids = frozenset((request,)) if request else None

    def line(self, source: Source, line: str) -> None:
        """One line as the API server gave it, its time first."""
        stamp, _, text = line.partition(" ")
        if self._ids is not None and not about(self._ids, text):
            return
        color = self._colors.setdefault(source.label, _COLORS[len(self._colors) % len(_COLORS)])
        prefix = click.style(f"{source.label:<{self._width}} |", fg=color)
        text = "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)
        click.echo(f"{prefix} {stamp + ' ' if self._timestamps else ''}{text}")

    def note(self, text: str) -> None:
        """What is ours to say, on stderr."""
        click.echo(click.style(text, dim=True), err=True)


def _follow(connection: Connection, name: str, components: Sequence[str], query: Mapping[str, str], printer: Printer) -> None:
    """All logs until interrupted; pods that come later are followed from their first line on."""
    lines: queue.Queue[tuple[Source, str | None]] = queue.Queue(_MOST_WAITING)
    followed: set[tuple[str, str]] = set()
    next_look, first = 0.0, True
    while True:
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + _LOOK_SECONDS
            try:
                with in_sentences():
                    found = sources_of(connection.pods(name), components)
            except SplitError as error:
                printer.note(error.format_message())
                found = []
            for source in found:
                if (source.pod, source.container) not in followed:
                    followed.add((source.pod, source.container))
                    asked = {**query, "follow": "true"} if first else {**query, "follow": "true", "tailLines": "-1"}
                    asked = {key: value for key, value in asked.items() if (key, value) != ("tailLines", "-1")}
                    threading.Thread(target=_pump, args=(connection, source, asked, lines), daemon=True).start()
            if not found and first:
                printer.note(f"{name} has no pods yet; waiting for them")
            first = first and not found
        try:
            source, line = lines.get(timeout=0.2)
        except queue.Empty:
            continue
        if line is None:
            followed.discard((source.pod, source.container))
            next_look = max(next_look, time.monotonic() + _LOOK_SECONDS)
        else:
            printer.line(source, line)


def _pump(connection: Connection, source: Source, query: Mapping[str, str], lines: "queue.Queue[tuple[Source, str | None]]") -> None:
    """One log into the queue; None when it ends."""
    try:
        with in_sentences():
            for line in _lines(connection, source, query, _SILENT_SECONDS):
                lines.put((source, line))
    except SplitError as error:
        lines.put((source, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} ({error.message})"))
    finally:
        lines.put((source, None))
