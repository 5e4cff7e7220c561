"""Which objects are ours: those whose controller is a SplitInference, by UID. Labels prove nothing, anyone may set them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference.controller.api.group import GROUP, KIND


@dataclass(frozen=True)
class Controller:
    """The owner reference that says who manages an object."""

    group: str
    kind: str
    name: str
    uid: str

    @property
    def is_resource(self) -> bool:
        """Whether it is a SplitInference."""
        return (self.group, self.kind) == (GROUP, KIND)


def controller_of(thing: Mapping[str, Any]) -> Controller | None:
    """The controller of an object; None where it has none."""
    for owner in (thing.get("metadata") or {}).get("ownerReferences") or ():
        if owner.get("controller") is True:
            group = str(owner.get("apiVersion", "")).rpartition("/")[0]
            return Controller(group, str(owner.get("kind", "")), str(owner.get("name", "")), str(owner.get("uid", "")))
    return None


def belongs_to(thing: Mapping[str, Any], instance: str) -> bool:
    """Whether a SplitInference of this name is the object's controller, be it one that was deleted and is still being removed. Pods of its
    gateway have a ReplicaSet of its Deployment between, which is known by its name."""
    found = controller_of(thing)
    if found is None:
        return False
    if (found.group, found.kind) == ("apps", "ReplicaSet"):
        return found.name.startswith(f"{instance}-gateway-")
    return found.is_resource and found.name == instance


def owner_uid(thing: Mapping[str, Any]) -> str:
    """UID of the SplitInference that is the object's controller; empty where there is none."""
    found = controller_of(thing)
    return found.uid if found is not None and found.is_resource else ""


def is_left_over(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether `found` belongs to an earlier SplitInference of the name that `wanted` has as its controller."""
    now = controller_of(wanted)
    return now is not None and owner_uid(found) not in ("", now.uid) and belongs_to(found, now.name)


def why_taken(found: Mapping[str, Any] | None, wanted: Mapping[str, Any]) -> str:
    """What stands where `wanted` should (None: it may not be read), and what to do, in words. The object itself is left as it is."""
    about = wanted["metadata"]
    what = f"{wanted['kind']} {about['name']} in namespace {about['namespace']}"
    if found is None:
        return f"{what} exists and this SplitInference did not create it. Delete or rename it, or give the SplitInference another name"
    if is_left_over(found, wanted):
        return (
            f"{what} belongs to an earlier SplitInference of this name. Kubernetes is still removing it, then the operator creates it again"
        )
    now = controller_of(found)
    whose = f"{now.kind} {now.name} manages it" if now else "it has no controller"
    return (
        f"{what} exists and this SplitInference did not create it ({whose}). Delete or rename it, or give the SplitInference another name"
    )
