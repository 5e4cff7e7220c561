"""What the dealer writes, in one folder for each party and one for the client, and how a party takes material: once, or never.

TARGET/party-0, TARGET/party-1:  plan.json, weights.npz, material/<name>.npz, ca.crt, tls.crt, tls.key
TARGET/client:                   plan.json, ca.crt, tls.crt, tls.key
"""

import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.cli.secret.chain import SharedChain, check_range, read_chain
from splitinference.cli.secret.dealing import Arrays, material, shared_weights
from splitinference.cli.secret.identities import write_identities

NAME = re.compile(r"[0-9]{6}")


class NoMaterialError(Exception):
    """This material is not there: it was used, or never made."""


@dataclass(frozen=True)
class Plan:
    """What all three may know: `deal` names the folder's making, `rows` and `largest` bound an input, `steps` are without numbers."""

    deal: str
    rows: int
    largest: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    steps: list[dict[str, Any]]


def steps_of(chain: SharedChain) -> list[dict[str, Any]]:
    """The chain's steps as both parties know them."""
    return [{"product": step.weight is not None, "outputs_first": step.outputs_first, "size": step.size} for step in chain.steps]


def deal(model: Path, target: Path, *, count: int, rows: int, largest: float) -> Plan:
    """Write all three folders. ModelRefusedError, ValueError, and FileExistsError where the target is there."""
    chain = read_chain(model)
    check_range(chain, largest)
    plan = Plan(secrets.token_hex(16), rows, largest, chain.before, chain.after, steps_of(chain))
    weights = shared_weights(chain)
    target.mkdir(mode=0o700, parents=True)
    for folder in ("party-0", "party-1", "client"):
        (target / folder).mkdir(mode=0o700)
        _write(target / folder / "plan.json", json.dumps(plan.__dict__, indent=1).encode())
    write_identities(target, plan.deal)
    for number, arrays in enumerate((weights.first, weights.second)):
        _save(target / f"party-{number}" / "weights.npz", arrays)
        (target / f"party-{number}" / "material").mkdir(mode=0o700)
    for item in range(count):
        made = material(chain, rows)
        for number, arrays in enumerate((made.first, made.second)):
            _save(target / f"party-{number}" / "material" / f"{item:06}.npz", _packed(arrays))
    return plan


def read_plan(folder: Path) -> Plan:
    """The plan in a folder of the dealer's. ValueError where it is none."""
    try:
        found = json.loads((folder / "plan.json").read_text())
        return Plan(**{**found, "before": tuple(found["before"]), "after": tuple(found["after"])})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'plan.json'} is no plan of `splitinference secret deal`") from error


def read_weights(folder: Path) -> Arrays:
    """A party's shares of the weights."""
    return _load(folder / "weights.npz")


def left(folder: Path) -> list[str]:
    """The names of the material that is left, in order."""
    return sorted(file.stem for file in (folder / "material").glob("*.npz") if NAME.fullmatch(file.stem))


def take(folder: Path, name: str) -> Arrays:
    """Material that nobody else gets from now on. Its file is away before a byte is sent: no crash lets it be used twice."""
    if not NAME.fullmatch(name):
        raise NoMaterialError(f"material has a name of six digits, not {name[:20]!r}")
    file, mine = folder / "material" / f"{name}.npz", folder / "material" / f"{name}.taken"
    try:
        os.rename(file, mine)
    except FileNotFoundError as error:
        raise NoMaterialError(f"material {name} was used, or never made") from error
    try:
        arrays = _load(mine)
    finally:
        mine.unlink()
        _sync(folder / "material")
    return {key: _unpacked(key, value, arrays) for key, value in arrays.items() if not key.endswith(".shape")}


def _packed(arrays: Arrays) -> Arrays:
    """Bits eight to a byte, with their shapes beside them."""
    made: Arrays = {}
    for key, value in arrays.items():
        made[key] = np.packbits(value) if value.dtype == np.uint8 else value
        if value.dtype == np.uint8:
            made[f"{key}.shape"] = np.array(value.shape, dtype=np.int64)
    return made


def _unpacked(key: str, value: NDArray[Any], arrays: Arrays) -> NDArray[Any]:
    shape = arrays.get(f"{key}.shape")
    return value if shape is None else np.unpackbits(value, count=int(np.prod(shape))).reshape(tuple(shape))


def _load(file: Path) -> Arrays:
    with np.load(file, allow_pickle=False) as opened:
        return {name: opened[name] for name in opened.files}


def _save(file: Path, arrays: Arrays) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        np.savez(opened, **arrays)  # type: ignore[arg-type]


def _write(file: Path, data: bytes) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(data)


def _sync(folder: Path) -> None:
    """Make removals last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
