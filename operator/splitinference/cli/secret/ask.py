"""The client: it makes the shares of an input, asks both parties, and adds the shares of the output."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitinference.cli.secret.link import Link, LinkError, connect
from splitinference.cli.secret.ring import WORD, Ring, decode, encode, split
from splitinference.cli.secret.store import NoMaterialError, Plan, read_plan

Address = tuple[str, int]
ATTEMPTS = 3
"""Other clients may take the material that this one chose."""


@dataclass(frozen=True)
class Answer:
    """Outputs [rows, …]; bytes that the parties sent to each other, and those between them and the client; material that is left."""

    outputs: NDArray[np.float64]
    between_parties: int
    with_client: int
    left: int


def ask(folder: Path, parties: tuple[Address, Address], rows: Any, seconds: float = 30.0) -> Answer:
    """Outputs for [rows, …]. ValueError for a wrong input, NoMaterialError where all is used, LinkError where a party is not there."""
    plan = read_plan(folder)
    values = _checked(plan, rows)
    padded = np.zeros((plan.rows, int(np.prod(plan.before))))
    padded[: len(values)] = values.reshape(len(values), -1)
    for attempt in range(ATTEMPTS):
        listed = [_listed(folder, plan, parties[number], number, seconds) for number in (0, 1)]
        both = sorted(set(listed[0]["next"]) & set(listed[1]["next"]))
        if not both:
            raise NoMaterialError(
                f"the parties have no material in common: {listed[0]['left']} and {listed[1]['left']} are left. Deal more"
            )
        shares = split(encode(padded))  # new ones for each attempt
        links = _connected(folder, plan, parties, seconds)
        with ThreadPoolExecutor(2) as pool:
            tasks = [pool.submit(_half, links[number], plan, number, both[0], shares[number]) for number in (0, 1)]
        failures = [error for task in tasks if (error := task.exception()) is not None]
        if not failures:
            halves = [task.result() for task in tasks]
            outputs = decode(halves[0][0] + halves[1][0])[: len(values)].reshape(len(values), *plan.after)
            left = min(int(one["left"]) for one in listed) - 1
            return Answer(outputs, halves[0][1] + halves[1][1], halves[0][2] + halves[1][2], left)
        spent = [error for error in failures if isinstance(error, NoMaterialError)]
        if not spent or attempt == ATTEMPTS - 1:
            raise (spent or failures)[0]
    raise AssertionError("unreachable")


def _checked(plan: Plan, rows: Any) -> NDArray[np.float64]:
    values = np.asarray(rows)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"an input of {values.dtype} is not numbers")
    if values.shape[1:] != plan.before or not 1 <= len(values) <= plan.rows:
        raise ValueError(f"an input has shape {list(values.shape)}, expected 1 to {plan.rows} rows of {list(plan.before)}")
    if not np.all(np.isfinite(values)) or np.abs(values).max() > plan.largest:
        raise ValueError(f"an input has a number that is not finite or above {plan.largest:g}, for which the material was made")
    return values.astype(np.float64)


def _listed(folder: Path, plan: Plan, address: Address, number: int, seconds: float) -> dict[str, Any]:
    link = connect(address, folder, plan.deal, f"party-{number}", seconds)
    try:
        link.say({"do": "list"})
        found = link.hear()
        if not isinstance(found.get("next"), list) or not isinstance(found.get("left"), int):
            raise LinkError(f"party-{number} does not say what material it has")
        return found
    finally:
        link.close()


def _connected(folder: Path, plan: Plan, parties: tuple[Address, Address], seconds: float) -> tuple[Link, Link]:
    """Connections to both, before either is asked for anything."""
    first = connect(parties[0], folder, plan.deal, "party-0", seconds)
    try:
        return first, connect(parties[1], folder, plan.deal, "party-1", seconds)
    except LinkError:
        first.close()
        raise


def _half(link: Link, plan: Plan, number: int, name: str, share: Ring) -> tuple[Ring, int, int]:
    """A party's share of the output, the bytes it sent to the other party, and the bytes between it and us."""
    try:
        link.say({"do": "infer", "material": name})
        link.send(share.astype("<u8").tobytes())
        said = link.hear()
        if said.get("error"):
            words = f"party-{number}: {str(said['error'])[:300]}"
            raise NoMaterialError(words) if said.get("spent") else LinkError(words)
        size = plan.rows * int(np.prod(plan.after)) * WORD
        output = np.frombuffer(link.receive(size, size), dtype="<u8").astype(np.uint64).reshape(plan.rows, -1)
        return output, int(said.get("sent", 0)), link.sent + link.received
    except LinkError as error:
        raise error if str(error).startswith("party-") else LinkError(f"party-{number}: {error}") from error
    finally:
        link.close()
