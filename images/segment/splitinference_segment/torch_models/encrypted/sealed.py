"""Safetensors files that may be encrypted: a tensor is decrypted when it is read, into this process' memory and nowhere else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open

from splitinference_modelfiles.sealed import (
    NOT_ENCRYPTED,
    TAG,
    TAMPERED,
    WRONG_KEY,
    FileKey,
    Seal,
    TamperedError,
    WrongKeyError,
    bounds,
    opened,
    seal_of,
)
from splitinference_modelfiles.stored.headers import header_length, parse_header
from splitinference_segment.torch_models.encrypted.model_key import ModelKeyError, key_of_model


class Tensors(Protocol):
    """A file of tensors."""

    def get_tensor(self, name: str) -> torch.Tensor:
        """The tensor, as it was before it was encrypted."""


@contextlib.contextmanager
def open_tensors(path: str) -> Iterator[Tensors]:
    """The file's tensors. Where a key broker is named, the file must be encrypted: nothing else has its key.

    Raises:
        ModelKeyError: the key is not to be had, is another, or the file is not as it was encrypted.
    """
    name, header = Path(path).name, _header(path)
    seal, key = seal_of(header, name), key_of_model()
    with safe_open(path, framework="pt") as stored:
        if seal is None and key is None:
            yield stored
        elif seal is None:
            raise ModelKeyError(NOT_ENCRYPTED, f"{name} is not encrypted, and spec.model.encryption says that it is")
        elif key is None:
            raise ModelKeyError(NOT_ENCRYPTED, f"{name} is encrypted: name the key broker in spec.model.encryption")
        else:
            yield _Sealed(stored, seal, key, name, header)


def _header(path: str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(header_length(file.read(8), Path(path).name))


class _Sealed:
    def __init__(self, stored: Any, seal: Seal, key: bytes, name: str, header: bytes) -> None:
        self._stored, self._seal, self._table = stored, seal, parse_header(header, name, None)
        with _told():
            self._key: FileKey = opened(key, seal, name, self._table)

    def get_tensor(self, name: str) -> torch.Tensor:
        """Decrypted, in memory of its own."""
        stored, info, tags = self._stored.get_tensor(name), self._table[name], self._seal.tags[name]
        plain = bytearray(info.bytes)
        coded = stored.reshape(-1).view(torch.uint8).numpy() if info.bytes else b""
        with _told():
            for index, begin, end in bounds(info):
                tag = tags[TAG * index : TAG * (index + 1)]
                plain[begin:end] = self._key.decrypted(name, info, index, bytes(coded[begin:end]), tag)
        return torch.frombuffer(plain, dtype=stored.dtype).reshape(stored.shape) if info.bytes else stored


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except WrongKeyError as error:
        raise ModelKeyError(WRONG_KEY, str(error)) from error
    except TamperedError as error:
        raise ModelKeyError(TAMPERED, str(error)) from error
    except ValueError as error:
        raise ModelKeyError(WRONG_KEY, f"what the key broker gave is no key: {error}") from error
