"""The rights that a chart gives to an account against the requests of its audit log: what is not given, and what is not used.

Pure functions of audit events and rendered objects, so that the log of any run will do: of a bare API server, of a kind cluster.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Request:
    """One kind of request. `namespace` and `name` are empty where the request has none."""

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        where = f" in {self.namespace}" if self.namespace else ""
        return f"{self.verb} {self.resource}{'.' + self.group if self.group else ''}{' ' + self.name if self.name else ''}{where}"


@dataclass(frozen=True, order=True)
class Right:
    """One verb for one resource, as a role gives it. `namespace` empty: in all of them, and for what has none; `name` empty: any."""

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""

    def covers(self, request: Request) -> bool:
        """Whether it lets the request pass."""
        same = (self.group, self.resource, self.verb) == (request.group, request.resource, request.verb)
        return same and self.namespace in ("", request.namespace) and self.name in ("", request.name)

    def __str__(self) -> str:
        return str(Request(self.group, self.resource, self.verb, self.namespace, self.name))


@dataclass(frozen=True)
class Difference:
    """`missing`: requests that no right covers; `unused`: rights that no request needed."""

    missing: tuple[Request, ...]
    unused: tuple[Right, ...]


def read_log(text: str) -> Iterator[Mapping[str, Any]]:
    """The events of an audit log."""
    for line in text.splitlines():
        if line.strip():
            yield json.loads(line)


def requests_of(user: str, events: Iterable[Mapping[str, Any]]) -> frozenset[Request]:
    """What the user asked for, refused or not. Paths without an object, such as discovery, are everybody's."""
    found = set()
    for event in events:
        about = event.get("objectRef") or {}
        if (event.get("user") or {}).get("username") != user or not about.get("resource"):
            continue
        sub = about.get("subresource")
        resource = f"{about['resource']}/{sub}" if sub else str(about["resource"])
        # By the name of what is created no right is limited: it is not in the request's path.
        name = "" if event["verb"] == "create" else str(about.get("name") or "")
        found.add(Request(str(about.get("apiGroup") or ""), resource, str(event["verb"]), str(about.get("namespace") or ""), name))
    return frozenset(found)


def rights_of(account: tuple[str, str], objects: Iterable[Mapping[str, Any]]) -> frozenset[Right]:
    """What rendered roles and bindings give to a ServiceAccount (namespace, name)."""
    there = list(objects)
    rules = {
        (str(found["kind"]), str(found["metadata"].get("namespace", "")), str(found["metadata"]["name"])): found.get("rules") or ()
        for found in there
        if found["kind"] in ("Role", "ClusterRole")
    }
    subject = {"kind": "ServiceAccount", "namespace": account[0], "name": account[1]}
    rights: set[Right] = set()
    for binding in there:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding") or subject not in (binding.get("subjects") or ()):
            continue
        namespace = str(binding["metadata"].get("namespace", "")) if binding["kind"] == "RoleBinding" else ""
        role = binding["roleRef"]
        for rule in rules[role["kind"], namespace if role["kind"] == "Role" else "", role["name"]]:
            rights |= set(_expanded(rule, namespace))
    return frozenset(rights)


def _expanded(rule: Mapping[str, Any], namespace: str) -> Iterator[Right]:
    for group in rule.get("apiGroups") or ():
        for resource in rule.get("resources") or ():
            for verb in rule.get("verbs") or ():
                for name in rule.get("resourceNames") or ("",):
                    yield Right(group, resource, verb, namespace, name)


def difference(requests: Iterable[Request], rights: Iterable[Right]) -> Difference:
    """Both directions."""
    asked, given = sorted(set(requests)), sorted(set(rights))
    return Difference(
        missing=tuple(request for request in asked if not any(right.covers(request) for right in given)),
        unused=tuple(right for right in given if not any(right.covers(request) for request in asked)),
    )
