"""Objects that the operator made stay as it made them: what others delete or change is noticed in the mirror and put right."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from splitinference.controller.kube_values.quantity import quantity
from splitinference.controller.ports import Cluster, Manifest, NameTakenError, RefusedError

log = logging.getLogger(__name__)

_ABOUT = ("labels", "annotations", "ownerReferences")
_NOT_COMPARED = ("apiVersion", "kind", "metadata", "status")


def difference(wanted: Manifest, there: Manifest) -> str:
    """The first field in which an object is not as it is wanted; empty where it is. What the API server or others add does not count."""
    about, found = wanted["metadata"], there.get("metadata") or {}
    for part in _ABOUT:
        if path := _differs(about.get(part), found.get(part), f"metadata.{part}"):
            return path
    for name, value in wanted.items():
        if name not in _NOT_COMPARED and (path := _differs(value, there.get(name), name)):
            return path
    return ""


def _differs(wanted: Any, there: Any, path: str) -> str:
    if wanted in (None, "", [], {}, ()):  # the API server leaves these out
        return ""
    if isinstance(wanted, Mapping):
        if not isinstance(there, Mapping):
            return path
        return next((found for key, value in wanted.items() if (found := _differs(value, there.get(key), f"{path}.{key}"))), "")
    if isinstance(wanted, list | tuple):
        if not isinstance(there, list | tuple) or len(there) != len(wanted):
            return path
        pairs = enumerate(zip(wanted, there, strict=True))
        return next((found for index, (one, other) in pairs if (found := _differs(one, other, f"{path}[{index}]"))), "")
    if wanted == there or (wanted is False and there is None):
        return ""
    # 1000m and 1 are the same quantity, and the API server writes the shorter one.
    number = quantity(wanted) if isinstance(wanted, str) and isinstance(there, str) else None
    return "" if number is not None and number == quantity(there) else path


def tried_all(writes: Sequence[Callable[[], None]]) -> None:
    """Make every write: what one object is for should not suffer because another is refused.

    Raises one RefusedError for all that were refused, or a NameTakenError: a name that is taken is what the user has to mend first.
    """
    refused: list[RefusedError] = []
    for write in writes:
        try:
            write()
        except RefusedError as error:
            refused.append(error)
    if refused:
        taken = any(isinstance(error, NameTakenError) for error in refused)
        raise (NameTakenError if taken else RefusedError)("; ".join(str(error) for error in refused))


Key = tuple[str, str]
"""Kind and name."""


@dataclass
class Keeper:
    """Puts right what others did, for one resource. It remembers only to do less: a fresh one finds out the same."""

    _good: dict[Key, tuple[Manifest, Manifest]] = field(default_factory=dict)
    _applied: dict[Key, Manifest] = field(default_factory=dict)

    def keep(self, cluster: Cluster, wanted: Sequence[Manifest], *, only_missing: bool = False) -> tuple[str, ...]:
        """Have these objects be there, as they are wanted; with `only_missing`, those that are there stay as they are. Returns what others
        had done, in words. Raises RefusedError after all were tried, and UnavailableError."""
        done: list[str] = []
        writes: list[Callable[[], None]] = []
        for manifest in wanted:
            kind, name = key = str(manifest["kind"]), str(manifest["metadata"]["name"])
            there = _found(cluster, manifest)
            if there is not None and (only_missing or self._is_known(key, manifest, there)):
                continue
            differs = difference(manifest, there) if there is not None else ""
            if there is not None and differs and self._applied.get(key) == manifest:
                # The API server answered our last write with this: a webhook changes it, and we would change it for ever.
                log.warning("%s %s differs from what the operator applied (%s): something in the cluster changes it", kind, name, differs)
                differs = ""
            self._applied.pop(key, None)
            if there is not None and not differs:
                self._good[key] = (manifest, there)
                continue
            self._good.pop(key, None)
            writes.append(partial(self._apply, cluster, key, manifest))
            done.append(f"{kind} {name} was " + (f"changed ({differs})" if there is not None else "missing") + " and is created again")
        self._forget_others(wanted)
        tried_all(writes)
        return tuple(done)

    def _forget_others(self, wanted: Sequence[Manifest]) -> None:
        """Objects of the same kinds that are wanted no longer, such as the Services of segments that are gone."""
        keys = {(str(manifest["kind"]), str(manifest["metadata"]["name"])) for manifest in wanted}
        kinds = {kind for kind, _ in keys}
        for known in (self._good, self._applied):
            for key in [key for key in known if key[0] in kinds and key not in keys]:
                del known[key]

    def _apply(self, cluster: Cluster, key: Key, manifest: Manifest) -> None:
        cluster.apply(manifest)
        self._applied[key] = manifest

    def _is_known(self, key: Key, wanted: Manifest, there: Manifest) -> bool:
        """Whether such an object was compared with the same wish before."""
        return self._good.get(key) == (wanted, there)


def _found(cluster: Cluster, manifest: Manifest) -> Manifest | None:
    about = manifest["metadata"]
    there = cluster.owned(str(manifest["kind"]), str(about["namespace"]), str(about["labels"]["app.kubernetes.io/instance"]))
    return next((found for found in there if found["metadata"]["name"] == about["name"]), None)
