"""Whether what a segment loads is the model's: each tensor is hashed as it is copied, and compared with the list that the operator read.

The list comes in a ConfigMap that others may write. Its root stands in the pod's own environment, so another list is noticed.
"""

import base64
import contextlib
import ctypes
import json
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch

from splitinference_modelfiles.stored.digests import (
    CONFIG_MEMBER,
    MISMATCH,
    Digests,
    file_digest,
    group_digest,
    group_of,
    read_list,
    started,
)
from splitinference_modelfiles.stored.headers import TensorInfo

TERMINATION_LOG = Path("/dev/termination-log")
"""What is written there is the container's last message in the pod's status."""
_LARGEST = 64 << 20
_PIECE = 8 << 20


class MismatchError(Exception):
    """Something is not the model's; the message begins with ModelDigestMismatch and names it."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{MISMATCH}: {what}")


def read_digests(path: Path, root: str) -> Digests:
    """The list in the file, if it has this root. MismatchError otherwise."""
    try:
        unpacker = zlib.decompressobj(wbits=31)
        text = unpacker.decompress(base64.b64decode(path.read_bytes(), validate=True), _LARGEST)
        if not unpacker.eof:
            raise ValueError("it is too large, or cut short")
        found = read_list(json.loads(text)["content"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zlib.error) as error:
        raise MismatchError(f"the list of digests cannot be used: {error}") from error
    if found.root != root:
        raise MismatchError(f"the list of digests has the root {found.root}, expected {root}")
    return found


def check_config(folder: Path, digests: Digests) -> None:
    """MismatchError where config.json is not the model's."""
    check({CONFIG_MEMBER: file_digest("config.json", (folder / "config.json").read_bytes())}, [CONFIG_MEMBER], digests, _no_other)


def check(found: Mapping[str, str], everything: Collection[str], digests: Digests, other: Callable[[str], str]) -> None:
    """Compare what was read with the list. `everything`: all tensors that are stored; `other` gives the digest of one that was not read:
    where only groups are listed, a group is known by all of its members. MismatchError names the tensor, or the group."""
    if digests.tensors:
        for name, digest in found.items():
            if (wanted := digests.of(name)) != digest:
                raise MismatchError(
                    f"{name} has the digest {digest[:16]}..., expected {f'{wanted[:16]}...' if wanted else 'no such tensor'}"
                )
        return
    for group in sorted({group_of(name) for name in found}):
        members = [name for name in everything if group_of(name) == group]
        digest = group_digest({name: found.get(name) or other(name) for name in members})
        if (wanted := digests.groups.get(group)) != digest:
            expected = f"{wanted[:16]}..." if wanted else "no such group"
            raise MismatchError(f"a tensor of {group} is another, such as {members[0]}: digest {digest[:16]}..., expected {expected}")


def copied(name: str, info: TensorInfo, stored: torch.Tensor, target: torch.Tensor | None) -> str:
    """Copy the stored tensor into `target` (None: nowhere) and return its digest. The bytes that are hashed are those that are copied,
    piece by piece, so a file that changes meanwhile deceives nobody, and little memory is needed."""
    digest = started(name, info.dtype, info.shape)
    source, goal = stored.reshape(-1), None if target is None else target.view(-1)
    step = max(1, _PIECE // stored.element_size())
    for begin in range(0, source.numel(), step):
        piece = source[begin : begin + step].clone()
        digest.update((ctypes.c_char * (piece.numel() * piece.element_size())).from_address(piece.data_ptr()))
        if goal is not None:
            goal[begin : begin + step].copy_(piece)
    return str(digest.hexdigest())


def tell(error: Exception) -> None:
    """Leave the reason where the kubelet reads it: the server's own last lines would hide it."""
    with contextlib.suppress(OSError):
        TERMINATION_LOG.write_text(f"{error}\n", encoding="utf-8")  # Triton's stub has no locale


def _no_other(name: str) -> str:
    raise MismatchError(f"{name} is not listed")
