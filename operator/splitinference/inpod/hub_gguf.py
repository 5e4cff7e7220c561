"""GGUF models on the Hugging Face hub: their headers by ranges of bytes."""

import urllib.parse

from splitinference.inpod.hub_client import Files, check_access, patiently, range_of
from splitinference_modelfiles.gguf_files.gguf import GgufFile, GgufModel, Reader, choose_gguf, joined_gguf, read_gguf
from splitinference_modelfiles.stored.headers import ModelRefusedError


def hub_reader(url: str, token: str) -> Reader:
    """Reads ranges of a file of the hub, again after what may pass."""

    def read(offset: int, count: int) -> bytes:
        found: bytes = patiently(range_of, url, token, offset, count)
        return found

    return read


def hub_gguf(base: str, files: Files, wanted: str, token: str) -> GgufModel:
    """The model of the commit whose files are under `base`. ValueError says what is wrong; OSError where it could not be had."""
    chosen = choose_gguf(sorted(files), wanted or None)
    patiently(check_access, base, chosen[0], token)
    return joined_gguf([(name, hub_header(base, name, files, token)) for name in chosen])


def hub_header(base: str, name: str, files: Files, token: str) -> GgufFile:
    """Metadata and tensor table of one file."""
    size = files[name].size
    if size is None:
        raise ModelRefusedError(f"the hub does not state the size of {name}")
    return read_gguf(hub_reader(base + urllib.parse.quote(name), token), name, size)
