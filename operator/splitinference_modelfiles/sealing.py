"""Encrypting safetensors files, in the form of sealed.py."""

import json
import secrets
from pathlib import Path
from typing import IO

from splitinference_modelfiles.sealed import KEY_BYTES, TAG, FileKey, bounds, pieces, seal_of, sealed_header
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo, header_length, parse_header


def encrypt(source: Path, target: Path, key: bytes) -> None:
    """One safetensors file. Little memory is needed: one piece of a tensor at a time.

    Raises:
        ValueError: it is no safetensors file, or encrypted already.
    """
    salt = secrets.token_bytes(KEY_BYTES)
    with source.open("rb") as read:
        header = read.read(header_length(read.read(8), source.name))
        if seal_of(header, source.name) is not None:
            raise ModelRefusedError(f"{source.name} is encrypted already")
        table = parse_header(header, source.name, source.stat().st_size)
        made = FileKey(key, salt, target.name, list(table))
        # Tags have a known length, so the table's length is known before they are.
        empty = {name: bytes(TAG * pieces(info)) for name, info in table.items()}
        data_begin = 8 + len(sealed_header(header, salt, made.check, empty))
        with target.open("wb") as write:
            write.seek(data_begin)
            tags = _tensors(read, write, header, table, made)
            final = sealed_header(header, salt, made.check, tags)
            write.seek(0)
            write.write(len(final).to_bytes(8, "little") + final)


def _tensors(read: IO[bytes], write: IO[bytes], header: bytes, table: dict[str, TensorInfo], key: FileKey) -> dict[str, bytes]:
    """Write all tensors where they were; their tags."""
    begins = {name: entry["data_offsets"][0] for name, entry in json.loads(header).items() if name != "__metadata__"}
    origin, goal, tags = read.tell(), write.tell(), dict[str, bytes]()
    for name, info in table.items():
        read.seek(origin + begins[name])
        write.seek(goal + begins[name])
        for index, begin, end in bounds(info):
            piece, tag = key.encrypted(name, info, index, read.read(end - begin))
            write.write(piece)
            tags[name] = tags.get(name, b"") + tag
    return tags
