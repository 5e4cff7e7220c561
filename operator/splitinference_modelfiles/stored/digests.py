"""The digest of a model's content, as a tree of SHA-256: of each tensor, of each block's tensors, of the whole. Its text also runs in pods.

    tensor = SHA-256("tensor", name, dtype, shape, bytes as stored)
    group  = SHA-256("group", name and digest of each member, by name)     a block, or a tensor or file that belongs to no block
    model  = SHA-256("model", name and digest of each group, by name)

Whoever has the list of digests can check the part of the model that he reads, and the list itself by its root. Each input has its length
before it, so that no two inputs are alike. Where tensors lie, in which files and in which order, does not matter.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

MISMATCH = "ModelDigestMismatch"
"""The word by which a pod's message, and a condition's reason, say it."""
ROOT = re.compile(r"sha256:[0-9a-f]{64}")
CONFIG_MEMBER = "file:config.json"
MOST_LISTED = 4096
"""So many tensors are listed one by one; of models with more, groups are."""
_BLOCK_OF = re.compile(r"(?:^|\.)(?:layers|h|encoder\.layer)\.(\d+)\.|^(\d+)\.")
_PIECE = 1 << 20


class Digests(NamedTuple):
    """The list: member → digest in hex, of tensors one by one, or of groups alone."""

    tensors: Mapping[str, str]
    groups: Mapping[str, str]

    @property
    def root(self) -> str:
        """The model's digest, `sha256:` and 64 hex digits."""
        found = dict(self.groups) or _groups(self.tensors)
        return "sha256:" + _combined("model", found)

    def as_json(self) -> dict[str, Any]:
        """For the ConfigMap that keeps it."""
        return {"root": self.root, "groups": dict(self.groups)} if self.groups else {"root": self.root, "tensors": dict(self.tensors)}

    def of(self, member: str) -> str | None:
        """What is listed of a tensor or file; None where only its group is."""
        return self.tensors.get(member)


def listed(members: Mapping[str, str]) -> Digests:
    """The list for these members, each by itself while there are few."""
    return Digests(members, {}) if len(members) <= MOST_LISTED else Digests({}, _groups(members))


def read_list(content: object) -> Digests:
    """From JSON, checked against its own root. ValueError where it is damaged or not of that root."""
    if not isinstance(content, Mapping):
        raise ValueError("the list of digests is not a JSON object")
    parts = [content.get("tensors") or {}, content.get("groups") or {}]
    for part in parts:
        if not isinstance(part, Mapping) or not all(isinstance(v, str) and re.fullmatch("[0-9a-f]{64}", v) for v in part.values()):
            raise ValueError("the list of digests has an entry that is no SHA-256")
    found = Digests({str(k): v for k, v in parts[0].items()}, {str(k): v for k, v in parts[1].items()})
    if bool(found.tensors) == bool(found.groups) or found.root != content.get("root"):
        raise ValueError("the list of digests does not have the root that it states")
    return found


def group_of(member: str) -> str:
    """The group of a tensor or file: `block:7`, or the member itself."""
    found = _BLOCK_OF.search(member)
    return f"block:{found.group(1) or found.group(2)}" if found else member


def group_digest(members: Mapping[str, str]) -> str:
    """Of the tensors of one group."""
    return _combined("group", members)


def started(name: str, dtype: str, shape: Iterable[int]) -> Any:
    """A hash to feed with the tensor's bytes as they are stored; its hex digest is the tensor's. `dtype` as safetensors names it."""
    digest = hashlib.sha256()
    _feed(digest, "tensor", name, dtype, json.dumps(list(shape), separators=(",", ":")))
    return digest


def file_digest(name: str, content: bytes) -> str:
    """Of a small file, such as config.json."""
    digest = hashlib.sha256()
    _feed(digest, "file", name)
    digest.update(content)
    return digest.hexdigest()


def places(header: bytes, table: Mapping[str, TensorInfo]) -> list[tuple[str, int]]:
    """Name and size in bytes of a file's tensors, in the order in which they lie. `table`: the same header, as it was checked."""
    begins = {name: entry["data_offsets"][0] for name, entry in json.loads(header).items() if name != "__metadata__"}
    return [(name, table[name].bytes) for name in sorted(table, key=lambda name: (begins[name], table[name].bytes))]


def folder_digests(folder: str, file_of: Mapping[str, str], table: Mapping[str, TensorInfo], seconds: float | None) -> Digests | None:
    """Read all tensors of the folder that `file_of` names; None where that takes longer than `seconds` (None: no limit)."""
    ends = None if seconds is None else time.monotonic() + seconds
    with open(os.path.join(folder, "config.json"), "rb") as config:
        members = {CONFIG_MEMBER: file_digest("config.json", config.read())}
    for name in sorted(set(file_of.values())):
        with open(os.path.join(folder, name), "rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            here = _every(header)
            for tensor, size in places(header, here):
                wanted = file_of.get(tensor) == name
                digest = started(tensor, here[tensor].dtype, here[tensor].shape) if wanted else None
                left = size
                while left:
                    piece = file.read(min(_PIECE, left))
                    if not piece:
                        raise ModelRefusedError(f"{name} is cut short")
                    left -= len(piece)
                    if digest is not None:
                        digest.update(piece)
                    if ends is not None and time.monotonic() > ends:
                        return None
                if digest is not None and tensor in table:
                    members[tensor] = digest.hexdigest()
    return listed(members)


def _every(header: bytes) -> dict[str, TensorInfo]:
    found = {}
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            found[name] = TensorInfo(str(entry["dtype"]), tuple(entry["shape"]), end - begin)
    return found


def _groups(members: Mapping[str, str]) -> dict[str, str]:
    together: dict[str, dict[str, str]] = {}
    for name, digest in members.items():
        together.setdefault(group_of(name), {})[name] = digest
    return {group: group_digest(found) for group, found in together.items()}


def _combined(kind: str, members: Mapping[str, str]) -> str:
    digest = hashlib.sha256()
    _feed(digest, kind, *(text for name in sorted(members) for text in (name, members[name])))
    return digest.hexdigest()


def _feed(digest: Any, *texts: str) -> None:
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
