"""The table of scenarios' outcomes, and how an outcome takes the place of the last one."""

import json
from dataclasses import replace
from pathlib import Path

from e2e.results import BEGIN, END, keep, table
from e2e.scene import Outcome

MOVED = Outcome(
    scenario="a: busy",
    load="steady",
    requests=12,
    failed=0,
    moves=1,
    reason="UtilizationShifted",
    decided_seconds=21.4,
    settled_seconds=40.2,
    usual_gap_seconds=0.31,
    disturbed_gap_seconds=0.6,
    moving_gap_seconds=0.5,
    longest_gap_seconds=0.75,
    longest_wait_seconds=1.5,
    quiet_seconds=300.0,
)


def test_what_did_not_happen_is_a_dash():
    still = replace(MOVED, moves=0, reason="", decided_seconds=None, settled_seconds=None, moving_gap_seconds=None, quiet_seconds=0.0)
    row = {**vars(still), "day": "2026-01-01", "commit": "abc"}
    shown = "| a: busy | steady | 12 | 0 | 0 | – | – | – | 0.31 | 0.60 | – | 0.75 | 1.50 | – | 2026-01-01, abc |"
    assert table([row]).splitlines()[-1] == shown


def test_the_last_outcome_of_a_scenario_under_a_load_is_the_one_that_is_kept(tmp_path: Path):
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    page.write_text(f"Before.\n{BEGIN}\n{END}\nAfter.\n")
    for outcome in (MOVED, replace(MOVED, load="bursty"), replace(MOVED, moves=2)):
        keep(outcome, rows, page)
    assert [(row["load"], row["moves"]) for row in json.loads(rows.read_text())] == [("bursty", 1), ("steady", 2)]
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert text.endswith("\nAfter.\n")
    assert text.count("| a: busy |") == 2
