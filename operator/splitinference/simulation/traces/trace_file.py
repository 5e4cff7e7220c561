"""Traces as files: JSON for the whole, CSV for long lists of events. What is wrong is told with its path and the type expected there."""

import csv
import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from splitinference.simulation.traces.trace import Event, Trace

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)
_COLUMNS = ("at_s", "what", "node", "source", "target", "label", "value")
_MOST_PROBLEMS = 10


class TraceError(Exception):
    """A trace file cannot be used; the message names the file, the path inside it, and what is expected there."""


def read_trace(path: Path) -> Trace:
    """The trace in a JSON file. `events` may be the name of a CSV file beside it. Raises TraceError."""
    document = _json(path)
    if not isinstance(document, dict):
        raise TraceError(f"{path}: expected an object, is {_kind(document)}")
    events = document.get("events")
    if isinstance(events, str):
        document = {**document, "events": read_events(path.parent / events)}
    try:
        return Trace.model_validate(document)
    except ValidationError as error:
        raise TraceError(_problems(str(path), error, 2)) from error


def read_events(path: Path) -> list[Event]:
    """The events of a CSV file with a header; empty cells count as not given. Raises TraceError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            unknown = [name for name in rows.fieldnames or () if name not in _COLUMNS]
            if unknown or not {"at_s", "what", "value"} <= set(rows.fieldnames or ()):
                have = ", ".join(rows.fieldnames or ()) or "none"
                raise TraceError(f"{path}: expected columns at_s, what and value of {', '.join(_COLUMNS)}; has {have}")
            return [_event(path, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error


def write_trace(trace: Trace, path: Path) -> None:
    """Write the trace as JSON; reading it gives an equal trace. Raises TraceError if the file cannot be written."""
    try:
        path.write_text(trace.model_dump_json(indent=1, exclude_none=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise TraceError(f"{path}: cannot be written: {error}") from error


def _event(path: Path, line: int, row: dict[str, Any]) -> Event:
    if None in row or None in row.values():
        raise TraceError(f"{path}: line {line}: expected as many cells as the header has")
    try:
        return _EVENTS.validate_python({name: cell.strip() for name, cell in row.items() if cell.strip()})
    except ValidationError as error:
        raise TraceError(_problems(f"{path}: line {line}", error, 0)) from error


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: expected UTF-8 text: {error}") from error
    except json.JSONDecodeError as error:
        raise TraceError(f"{path}: line {error.lineno}, column {error.colno}: expected JSON: {error.msg}") from error


def _problems(where: str, error: ValidationError, tag_at: int) -> str:
    found = error.errors(include_url=False)
    lines = [f"{where}: {_line(problem, tag_at)}" for problem in found[:_MOST_PROBLEMS]]
    if len(found) > _MOST_PROBLEMS:
        lines.append(f"{where}: and {len(found) - _MOST_PROBLEMS} more problems")
    return "\n".join(lines)


def _line(problem: Any, tag_at: int) -> str:
    # An event's kind is put into the location: events[3].rate.value is events[3].value in the file.
    location = list(problem["loc"])
    if len(location) > tag_at and (tag_at == 0 or location[0] == "events"):
        del location[tag_at]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}: {message}" if path else message
    given = problem["input"]
    shown = "" if isinstance(given, dict) else f", is {_short(given)} ({_kind(given)})"
    return f"{path}: {message[:1].lower()}{message[1:]}{shown}" if path else f"{message}{shown}"


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _kind(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "an array",
        tuple: "an array",
        str: "a string",
        bool: "a truth value",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
