"""The catalogue that comes with the package: products, what engines reach on them (`priors.json`), and the measured rows behind it.

`facts.json` has nominal figures, sizes of models and the sources of `rows.csv`.
`splitinference calibrate fit` makes an entry from rows of your own; `extended` reads such files beside the built-in catalogue.
"""

import csv
import io
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from splitinference.core.cost.fitting.catalogue import Catalogue, CatalogueFile
from splitinference.core.cost.fitting.rows import Models, Row, Shape

MOST_FILES, MOST_BYTES = 64, 2**20
"""A ConfigMap holds at most 1 MiB."""


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


@cache
def built_in() -> Catalogue:
    """Products and entries."""
    return Catalogue.model_validate(
        {"processors": json.loads(_text("facts.json"))["processors"], "entries": json.loads(_text("priors.json"))}
    )


class CatalogueError(ValueError):
    """A file of the catalogue that cannot be used, and why."""


@cache
def extended(folder: str) -> Catalogue:
    """The built-in catalogue and every `*.json` file of `folder`, by name; the later one wins. An empty name adds nothing.

    A file is a catalogue as `splitinference calibrate fit` writes it. Its products and entries replace those of the same name. It is
    read once in a process. Raises CatalogueError, which names the file and the place in it.
    """
    found = built_in()
    for path in _files(folder) if folder else ():
        try:
            text = path.read_bytes()[: MOST_BYTES + 1]
        except OSError as error:
            raise CatalogueError(f"{path}: {error.strerror}") from None
        if len(text) > MOST_BYTES:
            raise CatalogueError(f"{path}: more than {MOST_BYTES // 2**20} MiB")
        try:
            found = found.with_more(CatalogueFile.model_validate_json(text))
        except ValueError as error:
            raise CatalogueError(f"{path}: {_first(error)}") from None
    return found


def _files(folder: str) -> list[Path]:
    """Of a mounted ConfigMap the names that start with a dot are its own folders."""
    try:
        paths = sorted(path for path in Path(folder).iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except OSError as error:
        raise CatalogueError(f"{folder}: {error.strerror}") from None
    if len(paths) > MOST_FILES:
        raise CatalogueError(f"{folder}: {len(paths)} files, at most {MOST_FILES} are read")
    return paths


@cache
def models() -> Models:
    """Layers of the models of the measured rows, by name."""
    return {name: Shape.model_validate(shape).runs() for name, shape in json.loads(_text("facts.json"))["models"].items()}


def sources() -> Mapping[str, str]:
    """Where the measured rows come from, by the name in their first column."""
    found: dict[str, str] = json.loads(_text("facts.json"))["sources"]
    return found


@cache
def rows() -> tuple[Row, ...]:
    """The measured rows."""
    return rows_from(_text("rows.csv"))


def rows_from(text: str) -> tuple[Row, ...]:
    """Rows from CSV with the columns processor, engine, model, phase, batch, tokens, ms, and perhaps source.

    Raises ValueError, which names the line, for a row that makes no sense.
    """
    reader = csv.DictReader(io.StringIO(text))
    wanted = {name for name, field in Row.model_fields.items() if field.is_required()}
    missing = sorted(wanted - set(reader.fieldnames or ()))
    unknown = sorted(set(reader.fieldnames or ()) - set(Row.model_fields))
    if missing or unknown:
        words = [f"{word} {', '.join(names)}" for word, names in (("without", missing), ("unknown", unknown)) if names]
        raise ValueError(f"line 1: columns {'; '.join(words)}; expected are {', '.join(Row.model_fields)}")
    found = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num}: expected {len(reader.fieldnames or ())} columns")
        try:
            found.append(Row.model_validate(row))
        except ValueError as error:
            raise ValueError(f"line {reader.line_num}: {_first(error)}") from None
    return tuple(found)


def _first(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    one = error.errors(include_url=False, include_context=False)[0]
    return f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']} (is {str(one['input'])[:40]!r})"
