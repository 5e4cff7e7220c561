"""What the page shows, as JSON: one document of named items, and what changed between two of them.

Times are in milliseconds, memory in MiB, shares from 0 to 1, bandwidth in Mbit/s. `null`: not known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from splitinference.controller.api.conditions import stamp

Item = Mapping[str, Any]
Items = Mapping[str, Item]
KINDS = ("nodes", "resources", "links")
LONGEST = 4000
"""Characters of one message. What is longer comes from somebody who means harm, or helps nobody."""


@dataclass(frozen=True)
class Document:
    """`nodes` by name, `resources` by namespace/name, `links` by source→target; `notes`: what cannot be shown, and why; `read`: when."""

    read: datetime
    nodes: Items = field(default_factory=dict)
    resources: Items = field(default_factory=dict)
    links: Items = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    kind: str = "cluster"

    def items(self, kind: str) -> Items:
        """The items of a kind, one of `KINDS`."""
        found: Items = getattr(self, kind)
        return found


@dataclass(frozen=True)
class Scope:
    """What somebody may see. `namespaces`: None stands for all."""

    namespaces: frozenset[str] | None = None
    nodes: bool = True

    def of(self, document: Document) -> Document:
        """The document with what may be seen alone. Who may not list nodes sees the names of those that serve own resources, no figures."""
        if self.namespaces is None and self.nodes:
            return document
        resources = {key: item for key, item in document.resources.items() if self.sees(str(item["namespace"]))}
        if self.nodes:
            nodes: Items = {name: {**node, "held": [held for held in node["held"] if self.sees(str(held["namespace"]))]}
                            for name, node in document.nodes.items()}  # fmt: skip
            return replace(document, resources=resources, nodes=nodes)
        note = "You may not list nodes, so their use and links are not shown."
        return replace(document, resources=resources, nodes={}, links={}, notes=(*document.notes, note))

    def sees(self, namespace: str) -> bool:
        """Whether resources of this namespace may be seen."""
        return self.namespaces is None or namespace in self.namespaces


EMPTY = Document(read=datetime(1970, 1, 1, tzinfo=UTC))


def difference(before: Document, after: Document) -> dict[str, Any]:
    """What turns one document into the other: for each kind the items that are new or others (`set`) and the keys that are gone."""
    return {
        **{kind: _changed(before.items(kind), after.items(kind)) for kind in KINDS if before.items(kind) is not after.items(kind)},
        "notes": list(after.notes),
        "read": stamp(after.read),
        "kind": after.kind,
    }


def _changed(before: Items, after: Items) -> dict[str, Any]:
    return {
        "set": {key: item for key, item in after.items() if before.get(key) != item},
        "gone": [key for key in before if key not in after],
    }


def shortened(value: Any) -> Any:
    """The same JSON with texts cut to `LONGEST` characters."""
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[:LONGEST] + "…"
    if isinstance(value, Mapping):
        return {str(key)[:LONGEST]: shortened(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [shortened(entry) for entry in value]
    return value


def rounded(value: float | None, digits: int = 3) -> float | None:
    """A figure without digits that nobody reads, so that noise in them is no change."""
    return None if value is None else round(value, digits)


def keyed(items: Iterable[Item], *names: str) -> dict[str, Item]:
    """Items by these fields, joined by a slash."""
    return {"/".join(str(item[name]) for name in names): item for item in items}
