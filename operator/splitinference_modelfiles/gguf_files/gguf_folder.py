"""GGUF models in a folder: which of its files is the model, and what it says of itself. Its text also runs in reading pods."""

import os
from collections.abc import Collection, Mapping
from typing import Any, BinaryIO, NamedTuple

from splitinference_modelfiles.gguf_files.gguf import GGUF_SUFFIX, GgufFile, GgufModel, choose_gguf, joined_gguf, read_gguf
from splitinference_modelfiles.gguf_files.gguf_models import gguf_config
from splitinference_modelfiles.gguf_files.gguf_tokenizer import tokenizer_files
from splitinference_modelfiles.stored.folder import file_names, inside
from splitinference_modelfiles.stored.headers import INDEX, SUFFIX, ModelRefusedError


def gguf_names(folder: str, wanted: str) -> list[str]:
    """Names of the folder's files, and of those that lie beside `wanted` in a folder of its own. ModelRefusedError where it leads out."""
    above, _, _ = wanted.rpartition("/")
    if wanted.startswith("/") or ".." in wanted.split("/"):
        raise ModelRefusedError(f"{wanted[:200]} is outside of the model's folder")
    if not above:
        return file_names(folder)
    below = inside(folder, above)
    return [*file_names(folder), *(f"{above}/{name}" for name in (file_names(below) if os.path.isdir(below) else []))]


class WhatIsAsked(NamedTuple):
    """What a resource says of its model: the digest that it must have, the engine, and the GGUF file. Empty: nothing."""

    digest: str = ""
    engine: str = "Auto"
    file: str = ""

    def takes_gguf(self, names: Collection[str]) -> bool:
        """Whether the model is a GGUF file of those with these names: where one is asked for, and where there are no safetensors.
        ModelRefusedError where it is one and a digest is asked for."""
        if self.engine == "Torch":
            return False
        stored = any("/" not in name and (name.endswith(SUFFIX) or name == INDEX) for name in names)
        takes = self.engine == "LlamaCpp" or bool(self.file) or (not stored and any(name.endswith(GGUF_SUFFIX) for name in names))
        if takes and self.digest:
            raise ModelRefusedError(
                "spec.model.digest is available for safetensors alone: segments with llama.cpp do not check their tensors"
            )
        return takes


def gguf_model(folder: str, names: list[str], wanted: str) -> GgufModel:
    """The folder's GGUF model. ModelRefusedError says what is wrong; OSError where a file cannot be read."""
    return joined_gguf([(name, _read(folder, name)) for name in choose_gguf(names, wanted or None)])


def described(model: GgufModel) -> dict[str, Any]:
    """What is kept in the place of a config.json, and with it why the tokenizer cannot be built, if so."""
    return gguf_config(model, tokenizer_refused(model.metadata))


def tokenizer_refused(metadata: Mapping[str, Any]) -> str:
    """Why the tokenizer cannot be built; empty where it can."""
    try:
        tokenizer_files(metadata, check_only=True)
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
