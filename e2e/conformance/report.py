"""The tables: one line for each client and feature, and the page of the documentation."""

from collections.abc import Sequence
from typing import NamedTuple

OK, REFUSED, FAILED = "ok", "refused", "failed"
_PAGE = """\
# Clients

`make conformance` starts a gateway with SmolLM2-135M-Instruct in three segments and one with the encoder all-MiniLM-L6-v2 in two.
Then it runs unchanged clients against them and writes this page.
[Decision 54](../decisions/0054-clients-in-environments-of-their-own.md) has the details.

| result | meaning |
|---|---|
| `ok` | the client's call worked, and its program found the expected content in the answer |
| `refused` | the gateway answered with the 400 that is documented for this model |
| `failed` | anything else |

A client that cannot be installed has one line that says why.

{table}
"""


class Outcome(NamedTuple):
    """What became of one feature with one client."""

    client: str
    version: str
    feature: str
    result: str
    remark: str


def table(outcomes: Sequence[Outcome]) -> str:
    """In Markdown."""
    lines = ["| client | version | feature | result | remark |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        lines.append(f"| {' | '.join(_cell(value) for value in outcome)} |")
    return "\n".join(lines)


def page(outcomes: Sequence[Outcome]) -> str:
    """The page of the documentation."""
    return _PAGE.format(table=table(outcomes))


def _cell(value: str) -> str:
    return " ".join(value.replace("|", "\\|").split())
