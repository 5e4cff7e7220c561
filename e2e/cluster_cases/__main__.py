"""`make cluster-cases`: play the rows on the kind cluster, print a table, and end with 1 unless all are as expected."""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from e2e import stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown
from e2e.cluster_cases import relatives, rows
from e2e.cluster_cases.case import CASES, Case, Result, played


def chosen(words: Sequence[str], *, quick: bool) -> list[Case]:
    """The cases of these rows (all where none is named), in the rows' order; with `quick` those that CI plays. KeyError for no such row."""
    numbers = {int(word) for word in words}
    if unknown := numbers - {each.row for each in CASES}:
        raise KeyError(f"no such row: {', '.join(map(str, sorted(unknown)))}; there are {sorted({each.row for each in CASES})}")
    found = (each for each in CASES if (not numbers or each.row in numbers) and (each.quick or not quick))
    return sorted(found, key=lambda each: each.row)


def table(results: Sequence[Result]) -> Table:
    """A row each."""
    made = Table(title="What a cluster does", title_justify="left", show_lines=True)
    for name in ("row", "what the cluster does", "expected", "what happened", "ok"):
        made.add_column(name)
    for each in results:
        made.add_row(str(each.case.row), each.case.title, each.case.expected, each.happened[:600], "yes" if each.ok else "NO")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all was as expected, 2 for a row that is none."""
    parser = argparse.ArgumentParser(prog="python -m e2e.cluster_cases", description=f"{rows.__doc__}\n{relatives.__doc__}")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="numbers of rows (default: all)")
    parser.add_argument("--quick", action="store_true", help="only those that CI plays")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--list", action="store_true", help="say what there is, and play nothing")
    words = parser.parse_args(arguments)
    try:
        cases = chosen(words.rows, quick=words.quick)
    except (KeyError, ValueError) as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if words.list:
        print("\n".join(f"{each.row:3} {each.title}" for each in cases))
        return 0
    with shown() as progress:
        cluster = Cluster(Settings(name=os.environ.get("E2E_NAME", "splitinference-test")), progress)
        try:
            if not all(each.tests for each in cases):
                stack.stand_up(cluster)
            results = []
            for each in cases:
                with progress.step(f"row {each.row}: {each.title}") as step:
                    results.append(played(each, cluster))
                    step.note = f"{'ok' if results[-1].ok else 'NOT ok'}: {results[-1].happened.splitlines()[0][:200]}"
        finally:
            if os.environ.get("E2E_KEEP") != "1" and not all(each.tests for each in cases):
                cluster.down()
    if words.json:
        print(json.dumps([{"row": r.case.row, "title": r.case.title, "happened": r.happened, "ok": r.ok} for r in results], indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(table(results))
    return 0 if all(each.ok for each in results) else 1


if __name__ == "__main__":
    sys.exit(main())
