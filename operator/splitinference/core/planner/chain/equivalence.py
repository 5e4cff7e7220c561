"""Which classes of places can stand in for each other, and which are better in everything: what makes labels comparable.

Classes that all others see over the same links form a cluster: a chain that ended on one may be compared with one that ended on
another. Within a cluster, a row orders classes so that each is at least as good as the next in every segment. If a chain has
used, from the head of every row up to any point of it, no more places than another, then whatever the other can still do, it can.
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from splitinference.core.planner.chain.criterion import Arrays
from splitinference.core.planner.chain.tables import Bools, Floats, Ints
from splitinference.core.planner.chain.task import Task, each_once

MOST_MASKS = 3
"""Of more distinct links by boundary, classes are compared one by one."""
MOST_COMPARED = 1_200
"""More classes are not compared: it would take longer than it saves."""


@dataclass(frozen=True)
class Alike:
    """`cluster` per class; `rows`: classes in rows, best first."""

    cluster: Ints
    rows: tuple[tuple[int, ...], ...]


def alike(task: Task, arrays: list[Arrays], measures: list[list[Floats]]) -> Alike:
    """Clusters and rows under the given criteria, and under further measures (boundary by class by boundary, smaller is better)."""
    count = task.tables.count
    cluster = np.arange(count)
    if count * len(arrays) > MOST_COMPARED or task.tables.shares_node.any():
        return Alike(cluster, tuple((c,) for c in range(count)))
    matrices = _matrices(task)
    heads: dict[bytes, list[int]] = {}
    for c, key in enumerate(_keys(matrices, count)):
        found = heads.setdefault(key, [])
        same = next((head for head in found if _interchangeable(task, matrices, head, c)), None)
        if same is None:
            found.append(c)
        else:
            cluster[c] = same
    entry = np.stack([a.criterion.entry for a in arrays])
    rows: list[list[int]] = []
    for head in np.flatnonzero(cluster == np.arange(count)):
        members = np.flatnonzero(cluster == head)
        if len(members) == 1:
            rows.append([int(head)])
            continue
        boundaries = range(task.tables.layers)
        parts = [np.concatenate([a.segments_from(b)[members] for b in boundaries], axis=1) for a in arrays]
        blocked = np.concatenate([~task.allowed[b][members, b + 1 : arrays[0].stop[b]] for b in boundaries], axis=1)
        for slices in measures:
            extra = np.concatenate([slices[b][members, b + 1 : arrays[0].stop[b]] for b in boundaries], axis=1)
            parts.append(np.where(blocked, np.inf, extra))
        grid = np.stack(parts)
        rows.extend([[int(members[i]) for i in row] for row in _rows(grid, entry[:, members])])
    return Alike(cluster, tuple(tuple(row) for row in rows))


def needed(task: Task, found: Alike, segments: int) -> list[int]:
    """Classes that a best chain of at most `segments` segments may need: of a row, only so many places from its head.

    If a chain uses a place and not a better one of the same row, the better one can take its part.
    """
    kept: list[int] = []
    for row in found.rows:
        before = 0
        for c in row:
            if before < segments:
                kept.append(c)
            before += int(task.tables.multiplicity[c])
    return sorted(kept)


def _rows(flat: Floats, entry: Floats) -> list[list[int]]:
    """Order members (axis 1 of `flat`: measure by member by segment) into rows, each at least as good as the next."""
    count = flat.shape[1]
    open_segments = np.isfinite(flat[0]).sum(axis=1)
    sums = np.where(np.isfinite(flat), flat, 0.0).sum(axis=(0, 2))
    total = sums / np.maximum(open_segments, 1) + entry.sum(axis=0)
    rows: list[list[int]] = []
    for i in np.lexsort((np.arange(count), total, -open_segments)):
        for row in rows:
            tail = row[-1]
            if (flat[:, tail] <= flat[:, i]).all() and (entry[:, tail] <= entry[:, i]).all():
                row.append(int(i))
                break
        else:
            rows.append([int(i)])
    return rows


def _matrices(task: Task) -> list[tuple[Floats | Bools, Floats | Bools]]:
    """What tells links apart: pairs of (class by class, from the gateway)."""
    t = task.tables
    result: list[tuple[Floats | Bools, Floats | Bools]] = list(zip(t.links, t.ingress, strict=True))
    result.append((t.open_links, t.open_ingress))
    if task.hops_open is not None:
        seen: set[int] = set()
        for b in range(1, t.layers):
            if t.tensor_bytes(b) not in seen:
                seen.add(t.tensor_bytes(b))
                result.append((task.hops_open[b], task.hops_open[0][0]))
    return result


def _keys(matrices: list[tuple[Floats | Bools, Floats | Bools]], count: int) -> list[bytes]:
    """What interchangeable classes have in common at least: their links, sorted."""
    digests = [b""] * count
    for inner, ingress in matrices:
        for matrix in (inner, inner.T):
            others = matrix.astype(float)
            np.fill_diagonal(others, np.inf)
            others = np.sort(others, axis=1)
            digests = [hash((d, row.tobytes(), float(i))).to_bytes(8, "little", signed=True)
                       for d, row, i in zip(digests, others, ingress, strict=True)]  # fmt: skip
    return digests


def _interchangeable(task: Task, matrices: list[tuple[Floats | Bools, Floats | Bools]], i: int, j: int) -> bool:
    rest = np.ones(task.tables.count, dtype=bool)
    rest[[i, j]] = False
    several = task.tables.multiplicity > 1
    for inner, ingress in matrices:
        if ingress[i] != ingress[j] or inner[i, j] != inner[j, i]:
            return False
        if (several[i] and inner[i, i] != inner[i, j]) or (several[j] and inner[j, j] != inner[i, j]):
            return False
        if (inner[i, rest] != inner[j, rest]).any() or (inner[rest, i] != inner[rest, j]).any():
            return False
    return True


def merged(task: Task) -> tuple[Task, list[list[int]]]:
    """The task with classes as one that it cannot tell apart, and which classes each stands for. For tasks without costs."""
    t = task.tables
    if task.resources or t.shares_node.any() or task.hops_open is None:
        return task, [[c] for c in range(t.count)]
    opened = [task.hops_open[0] & t.open_ingress, *each_once(task.hops_open[1:], lambda mask: mask & t.open_links)]
    distinct = list({t.tensor_bytes(b): opened[b] for b in range(1, t.layers)}.values())
    rows = np.concatenate([np.packbits(mask, axis=1) for mask in task.allowed], axis=1)
    groups: list[list[int]] = []
    of_key: dict[tuple[object, ...], list[int]] = {}
    matrices = [(mask, opened[0][0]) for mask in distinct]
    links = _link_keys(distinct, t.count)
    for c in range(t.count):
        held = (rows[c].tobytes(), bool(opened[0][0][c]))
        keys = [(*held, key) for key in links[c]]
        near = dict.fromkeys(g for key in keys for g in of_key.get(key, ()))
        for g in near:
            if _interchangeable(task, matrices, groups[g][0], c):  # type: ignore[arg-type]
                groups[g].append(c)
                break
        else:
            for key in keys:
                of_key.setdefault(key, []).append(len(groups))
            groups.append([c])
    heads = [group[0] for group in groups]
    small = task.only(heads)
    assert small.hops_open is not None  # noqa: S101 - the task has them
    small.tables.multiplicity = np.array([int(t.multiplicity[group].sum()) for group in groups], dtype=np.int64)
    small.tables.open_ingress = np.ones(len(heads), dtype=bool)
    small.tables.open_links = np.ones((len(heads), len(heads)), dtype=bool)
    grid = np.ix_(heads, heads)
    pairs = [(group[0], group[min(1, len(group) - 1)]) for group in groups]

    def of_heads(mask: Bools) -> Bools:
        part = mask[grid].copy()
        part[np.arange(len(heads)), np.arange(len(heads))] = [mask[i, j] for i, j in pairs]
        return part

    return replace(small, hops_open=[opened[0][:, heads], *each_once(opened[1:], of_heads)]), groups


def _link_keys(masks: list[Bools], count: int) -> list[list[object]]:
    """Per class what it has in common with each class that the masks cannot tell from it, so that few need be compared.

    Two such classes have equal rows and columns but for their own places, where both have what is between the two: so with their
    own place set, or with it not set, the rows are equal. One of the keys of both is the same.
    """
    if not masks or len(masks) > MOST_MASKS:
        return [[None]] * count
    per_mask: list[list[tuple[bytes, bytes]]] = []
    for mask in masks:
        sides = []
        for own in (True, False):
            with_own = mask.copy()
            np.fill_diagonal(with_own, own)
            both = np.concatenate([np.packbits(with_own, axis=1), np.packbits(with_own.T, axis=1)], axis=1)
            sides.append([row.tobytes() for row in both])
        per_mask.append(list(zip(*sides, strict=True)))
    return [list(dict.fromkeys(product(*(keys[c] for keys in per_mask)))) for c in range(count)]


def longest_only(task: Task) -> Task:
    """The task with only the longest segment from each boundary on each class, where shorter ones can be no better.

    That is so where every hop is open and nothing but covering the layers counts: a shorter segment can be made longer and the
    next ones shorter, down to none.
    """
    t = task.tables
    need = t.need
    monotone = bool((need[:-2, 2:] >= need[1:-1, 2:])[np.triu_indices(t.layers - 1)].all()) if t.layers > 1 else True
    closed = task.hops_open is None or not all(mask.all() for mask in task.hops_open)
    if task.resources or task.min_segments > 1 or closed or not monotone or t.shares_node.any():
        return task
    allowed = []
    for mask in task.allowed:
        last = mask.shape[1] - 1 - np.argmax(mask[:, ::-1], axis=1)
        only = np.zeros_like(mask)
        rows = np.flatnonzero(mask.any(axis=1))
        only[rows, last[rows]] = True
        allowed.append(only)
    return replace(task, allowed=allowed)
