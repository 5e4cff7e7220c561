"""GGUF models in a folder: which of its files is the model, and what it says of itself. Its text also runs in reading pods."""

import os
from collections.abc import Mapping
from typing import Any, BinaryIO

from splitinference_modelfiles.folder import inside
from splitinference_modelfiles.gguf import GgufFile, GgufModel, choose_gguf, joined_gguf, read_gguf
from splitinference_modelfiles.gguf_models import gguf_config
from splitinference_modelfiles.gguf_tokenizer import tokenizer_files
from splitinference_modelfiles.headers import INDEX, SUFFIX, ModelRefusedError

ENGINES = ("Auto", "Torch", "LlamaCpp")


def takes_gguf(names: list[str], engine: str, wanted: str | None) -> bool:
    """Whether the model is a GGUF file: where one is named, where the engine needs one, and where there is nothing else."""
    if engine == "Torch":
        return False
    return engine == "LlamaCpp" or wanted is not None or not any(name.endswith(SUFFIX) or name == INDEX for name in names)


def has_gguf(names: list[str]) -> bool:
    """Whether there is any."""
    return any(name.endswith(".gguf") for name in names)


def gguf_model(folder: str, names: list[str], wanted: str | None) -> GgufModel:
    """The folder's GGUF model. ModelRefusedError says what is wrong; OSError where a file cannot be read."""
    return joined_gguf([(name, _read(folder, name)) for name in choose_gguf(names, wanted)])


def described(model: GgufModel) -> dict[str, Any]:
    """What is kept in the place of a config.json, and with it why the tokenizer cannot be built, if so."""
    return gguf_config(model, tokenizer_refused(model.metadata))


def tokenizer_refused(metadata: Mapping[str, Any]) -> str:
    """Why the tokenizer cannot be built; empty where it can."""
    try:
        tokenizer_files(metadata)
    except ModelRefusedError as error:
        return str(error)
    return ""


def _read(folder: str, name: str) -> GgufFile:
    path = inside(folder, name)
    with open(path, "rb") as file:
        return read_gguf(file_reader(file), name, os.path.getsize(path))


def file_reader(file: BinaryIO) -> Any:
    """Reads ranges of an open file."""

    def read(offset: int, count: int) -> bytes:
        file.seek(offset)
        return file.read(count)

    return read
