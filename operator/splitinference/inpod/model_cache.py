"""The cache of weight files on a node: named by content, checked before each use, and no larger than allowed.

`blobs/sha256-<digest>` holds a file once, whatever model or revision it is of. A model's folder beside it has hard links.
What was used least lately goes first. What a segment has loaded stays: it holds a shared lock on the file for as long as it runs, to load
again after a crash.
"""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

BLOBS = "blobs"
GRACE_SECONDS = 900.0
"""What was used so lately stays: its pod may still be about to load it."""
STALE_PART_SECONDS = 86_400.0
GIB = 2**30
_DIGEST = re.compile(r"[0-9a-f]{64}")


def blob_path(root: str, sha256: str) -> str:
    """Where the file with this digest is, or would be. ValueError where it is none."""
    if not _DIGEST.fullmatch(sha256):
        raise ValueError(f"{sha256[:80]!r} is no SHA-256")
    return os.path.join(root, BLOBS, f"sha256-{sha256}")


def adopt(target: str, blob: str) -> None:
    """A file of the model's folder that is not in the cache yet, as an earlier version left it, comes into the cache."""
    if os.path.isfile(target) and not os.path.islink(target) and not os.path.exists(blob):
        os.makedirs(os.path.dirname(blob), exist_ok=True)
        with suppress(OSError):
            os.link(target, blob)


def place(blob: str, target: str) -> None:
    """Have the model's folder show the file, and note that it was used. A copy where the file system cannot link it."""
    with suppress(OSError):  # another user's file: its time stays
        os.utime(blob)
    if os.path.exists(target) and not os.path.islink(target) and os.path.samefile(blob, target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    part = f"{target}.{os.uname().nodename}.link"
    with suppress(FileNotFoundError):
        os.unlink(part)
    try:
        os.link(blob, part)
    except OSError:
        shutil.copyfile(blob, part)
    os.replace(part, target)


def make_room(root: str, needed: int, limit: int, keep: Collection[str] = (), now: Callable[[], float] = time.time) -> int:
    """Remove files until `needed` bytes more stay within `limit` bytes (0: no limit); return how many bytes went. `keep`: blobs that this
    pod needs too. ValueError, with the numbers, where what is left is in use."""
    if limit <= 0:
        return 0
    if needed > limit:
        raise ValueError(f"one file has {needed / GIB:.1f} GiB, the model cache may have {limit / GIB:.1f} GiB (segments.modelCacheGiB)")
    folder = os.path.join(root, BLOBS)
    os.makedirs(folder, exist_ok=True)
    freed = 0
    with _alone(root):
        files = _files(folder)
        there = sum(size for _, _, size in files)
        for used, path, size in sorted(files):
            if there + needed <= limit:
                break
            part = path.endswith(".part")
            young = now() - used < (STALE_PART_SECONDS if part else GRACE_SECONDS)
            if young or path in keep or not _remove(root, path):
                continue
            there -= size
            freed += size
    if there + needed > limit:
        raise ValueError(
            f"the model cache of this node holds {there / GIB:.1f} of {limit / GIB:.1f} GiB, all of it in use or used in the last "
            f"{GRACE_SECONDS / 60:.0f} minutes, and {needed / GIB:.1f} GiB more are needed (segments.modelCacheGiB)"
        )
    return freed


def _files(folder: str) -> list[tuple[float, str, int]]:
    """When each was used last, its path, its bytes."""
    found = []
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            about = os.lstat(os.path.join(folder, name))
            # A part of a GGUF model has holes, which take no room.
            found.append((about.st_mtime, os.path.join(folder, name), min(about.st_size, about.st_blocks * 512)))
    return found


def _remove(root: str, path: str) -> bool:
    """Remove the file and its links in models' folders, unless a segment has it in use."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            about = os.fstat(file.fileno())
            for name in os.listdir(root):
                model = os.path.join(root, name)
                if name != BLOBS and os.path.isdir(model) and not os.path.islink(model):
                    _unlink_same(model, (about.st_dev, about.st_ino))
            os.unlink(path)
    except OSError:
        return False
    return True


def _unlink_same(folder: str, identity: tuple[int, int]) -> None:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            about = os.lstat(os.path.join(folder, name))
            if (about.st_dev, about.st_ino) == identity:
                os.unlink(os.path.join(folder, name))


@contextmanager
def _alone(root: str) -> Iterator[None]:
    """One pod at a time makes room."""
    with open(os.path.join(root, ".lock"), "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
