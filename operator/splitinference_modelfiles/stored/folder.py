"""A model's folder: its configuration, its tensor table and the names of its files. Its text also runs in reading pods."""

import json
import os
from typing import Any

from splitinference_modelfiles.stored.headers import (
    INDEX,
    ModelRefusedError,
    TensorInfo,
    check_named,
    header_length,
    joined,
    parse_header,
    parse_index,
    weight_files,
)

CONFIG = "config.json"
CONFIG_LIMIT = 4 * 2**20
INDEX_LIMIT = 64 * 2**20
TABLES_LIMIT = 96 * 2**20
MOST_NAMES = 1000


def read_json(folder: str, name: str) -> dict[str, Any]:
    """A JSON object of the folder. ModelRefusedError where it is none; OSError where it cannot be read."""
    text = _text(folder, name, CONFIG_LIMIT)
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ModelRefusedError(f"{name} is nested too deeply") from error
    except ValueError as error:
        raise ModelRefusedError(f"{name} is not JSON: {str(error)[:100]}") from error
    if not isinstance(content, dict):
        raise ModelRefusedError(f"{name} is not a JSON object")
    return content


def inside(folder: str, name: str) -> str:
    """The path of a file of the folder. ModelRefusedError where it is a link that leads out of the folder, or to nothing."""
    path = os.path.join(folder, name)
    if os.path.islink(path):
        there = os.path.realpath(path)
        if not there.startswith(os.path.realpath(folder) + os.sep):
            raise ModelRefusedError(
                f"{name} is a link to {os.readlink(path)[:200]}, which leaves the model's folder: copy the files themselves there (cp -rL)"
            )
        if not os.path.exists(there):
            raise ModelRefusedError(f"{name} is a link to {os.readlink(path)[:200]}, which is not there")
    return path


def file_names(folder: str) -> list[str]:
    """Names of the folder's own files, in order: tells which tokenizer and which quantization files there are."""
    return sorted(name for name in os.listdir(folder) if not os.path.isdir(os.path.join(folder, name)))[:MOST_NAMES]


def file_of_tensors(folder: str) -> dict[str, str] | None:
    """Tensor → file by the index; None where there is none."""
    if not os.path.lexists(os.path.join(folder, INDEX)):
        return None
    return parse_index(_text(folder, INDEX, INDEX_LIMIT))


def tensor_tables(folder: str, *, partial: bool = False) -> tuple[dict[str, str], dict[str, TensorInfo]]:
    """Tensor → file, and tensor → table entry. `partial`: files that the index names may be missing, and with them their entries."""
    file_of = file_of_tensors(folder)
    names = file_names(folder)
    if file_of is None:
        files = weight_files(names)
    else:
        files = sorted(set(file_of.values()))
        if partial:
            files = [name for name in files if name in names]
        else:
            check_named(file_of, names)
    if not files and not partial:
        raise ModelRefusedError(f"there is no *.safetensors file{_other_weights(names)}")
    tables: dict[str, dict[str, TensorInfo]] = {}
    spent = 0
    for name in files:
        path = inside(folder, name)
        with open(path, "rb") as file:
            length = header_length(file.read(8), name)
            spent += length
            if spent > TABLES_LIMIT:
                raise ModelRefusedError(f"the tensor tables together are longer than {TABLES_LIMIT} bytes")
            header = file.read(length)
        if len(header) < length:
            raise ModelRefusedError(f"{name} is cut short: its header should have {length} bytes, {len(header)} are there")
        tables[name] = parse_header(header, name, os.path.getsize(path))
    table = joined(tables, file_of)
    return file_of or {tensor: name for name, found in tables.items() for tensor in found}, table


def _other_weights(names: list[str]) -> str:
    if gguf := next((name for name in names if name.endswith(".gguf")), None):
        return f"; {gguf} needs the engine LlamaCpp (spec.model.engine), or convert it with segment-convert"
    other = next((name for name in names if name.endswith((".bin", ".pt", ".pth", ".h5", ".msgpack"))), None)
    return f"; {other} is of a format that is not read" if other else ""


def _text(folder: str, name: str, limit: int) -> str:
    with open(inside(folder, name), "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ModelRefusedError(f"{name} is longer than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ModelRefusedError(f"{name} is not UTF-8 text") from error
