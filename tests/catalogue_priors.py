"""Fits the catalogue's entries to its rows anew: `python -m tests.catalogue_priors` writes their file."""

import json
from itertools import groupby
from pathlib import Path

from splitinference import catalogue
from splitinference.core.cost.fitting.fit import fitted
from splitinference.core.cost.fitting.rows import Row

PRIORS = Path(__file__).parents[1] / "operator/splitinference/catalogue/priors.json"


def text() -> str:
    """The file's content; products with too few rows have no entry."""
    entries = []
    for (processor, engine), found in groupby(sorted(catalogue.rows(), key=_place), _place):
        rows = list(found)
        source = f"{len(rows)} rows of {engine} from {', '.join(sorted({row.source for row in rows}))}"
        try:
            efficiency = fitted(rows, catalogue.models(), catalogue.built_in().processors[processor], source)
        except ValueError:
            continue
        figures = efficiency.model_dump(exclude_defaults=True)
        entries.append({"processor": processor, "engine": engine, "rows": len(rows), "efficiency": figures})
    return json.dumps(entries, indent=1, ensure_ascii=False) + "\n"


def _place(row: Row) -> tuple[str, str]:
    return row.processor, row.engine


if __name__ == "__main__":
    PRIORS.write_text(text(), encoding="utf-8")
