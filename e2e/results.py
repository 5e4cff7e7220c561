"""What disturbances came to, kept in docs: each scenario's last outcome with its day, commit and machine, and the page's table of them."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from e2e.scene import Outcome
from e2e.stack import ROOT

ROWS = ROOT / "docs/reference/adaptation-results.json"
PAGE = ROOT / "docs/reference/adaptation-results.md"
BEGIN, END = "<!-- the table is written by `make e2e-long` -->", "<!-- end of the table -->"
GAPS = ("usual_gap_seconds", "disturbed_gap_seconds", "moving_gap_seconds", "longest_gap_seconds", "longest_wait_seconds")


def keep(outcome: Outcome, rows_file: Path = ROWS, page: Path = PAGE) -> None:
    """Put this outcome in place of the scenario's last one under the same load, in the rows and on the page."""
    rows: list[dict[str, Any]] = json.loads(rows_file.read_text()) if rows_file.exists() else []
    new = {**asdict(outcome), "day": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit(), "machine": machine()}
    others = [row for row in rows if (row["scenario"], row["load"]) != (new["scenario"], new["load"])]
    rows = sorted([*others, new], key=lambda row: (row["scenario"], row["load"]))
    rows_file.write_text(json.dumps(rows, indent=2) + "\n")
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown, a row each scenario and load."""
    head = ["scenario", "load", "requests", "failed", "moves", "why", "decided (s)", "whole again (s)", "gap p99 before (s)"]
    head += ["p99 disturbed (s)", "longest of the move (s)", "longest gap (s)", "longest wait (s)", "no further move for (s)"]
    head += ["day, commit"]
    lines = [head, ["---"] * 2 + ["---:"] * 3 + ["---"] + ["---:"] * 8 + ["---"]]
    for row in rows:
        figures = [row["requests"], row["failed"], row["moves"], row["reason"] or "–", _seconds(row["decided_seconds"])]
        figures += [_seconds(row["settled_seconds"])]
        figures += [_hundredths(row.get(name)) for name in GAPS]
        quiet = f"{row['quiet_seconds']:.0f}" if row["quiet_seconds"] else "–"
        lines.append([row["scenario"], row["load"], *map(str, figures), quiet, f"{row['day']}, {row['commit']}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def _hundredths(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def commit() -> str:
    """The checkout's commit, with a plus where anything but docs differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout.strip()

    return git("rev-parse", "--short=7", "HEAD") + (
        "+" if git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs") else ""
    )


def machine() -> str:
    """Processor, cores and memory of this machine."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "?"
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB"
