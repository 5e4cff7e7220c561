"""Published traces of requests, read from a folder of the user's: no trace is part of this package.

- azure-2023-conv, azure-2023-code: Azure LLM inference traces of 2023 (Splitwise, ISCA 2024), CC BY 4.0
- azure-2024-week: rates of the week of DynamoLLM (HPCA 2025), read off the published figures, CC BY 4.0; a derived work
- mooncake: the conversation trace of Mooncake (FAST 2025), Apache-2.0, with the hashes of blocks of 512 tokens
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path

FILES = {
    "azure-2023-conv": "azure-llm-2023-conv.csv",
    "azure-2023-code": "azure-llm-2023-code.csv",
    "azure-2024-week": "azure-llm-2024-conv-week-rate.csv",
    "mooncake": "mooncake-conversation.jsonl",
}
WEEK_LENGTHS = (1155, 211)
"""Mean prompt and output tokens of azure-2023-conv: the published week has rates alone."""
BLOCK_TOKENS = 512


class RequestTraceError(Exception):
    """The trace cannot be read; the message says which file, which line, and what was expected."""


@dataclass(frozen=True)
class Group:
    """`count` requests alike that arrive together at `at_s`. `blocks`: hashes of the prompt's blocks, first to last."""

    at_s: float
    count: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = field(default=())


def read_requests(name: str, folder: Path, scale: float = 1.0) -> tuple[list[Group], float]:
    """The requests of a trace in order of time, and how often (s) a controller is to look. `scale`: share of the load; requests of a trace
    of single requests are kept or left out by a fixed pattern, rates are multiplied.

    Raises RequestTraceError.
    """
    path = folder / FILES[name]
    if path.is_dir() or not path.exists():
        raise RequestTraceError(f"{path}: there is no such file; docs/how-to/simulate-a-fleet.md says where the trace is published")
    reader = {"azure-2024-week": _rates, "mooncake": _mooncake}.get(name, _azure)
    try:
        found = list(reader(path, scale))
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise RequestTraceError(f"{path}: it is not in the form of {name}: {error!r}") from error
    if not found:
        raise RequestTraceError(f"{path}: it holds no request")
    if any(b.at_s < a.at_s for a, b in pairwise(found)):
        raise RequestTraceError(f"{path}: requests must be in the order of time")
    return found, 60.0 if name == "azure-2024-week" else 10.0


def _kept(number: int, scale: float) -> bool:
    return int((number + 1) * scale) > int(number * scale) if scale < 1 else True


def _azure(path: Path, scale: float) -> Iterator[Group]:
    start: datetime | None = None
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or at
            if _kept(number, scale):
                seconds = (at - start).total_seconds()
                yield Group(seconds, max(1.0, scale), max(1, int(row["ContextTokens"])), max(1, int(row["GeneratedTokens"])))


def _mooncake(path: Path, scale: float) -> Iterator[Group]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            if _kept(number, scale):
                lengths = max(1, int(row["input_length"])), max(1, int(row["output_length"]))
                yield Group(float(row["timestamp"]) / 1e3, max(1.0, scale), *lengths, blocks=tuple(row["hash_ids"]))


def _rates(path: Path, scale: float) -> Iterator[Group]:
    """Each minute's requests in six groups, with the rate drawn straight between two samples."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(datetime.fromisoformat(row["utc"]), float(row["per_minute"])) for row in csv.DictReader(file)]
    start = rows[0][0]
    for (a, low), (b, high) in pairwise(rows):
        length, first = (b - a).total_seconds(), (a - start).total_seconds()
        for step in range(int(length // 10)):
            rate = low + (high - low) * step * 10 / length
            yield Group(first + 10 * step, scale * rate / 6, *WEEK_LENGTHS)
