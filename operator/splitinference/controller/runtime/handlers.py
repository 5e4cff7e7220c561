"""What changed → which passes are woken; and kopf, which runs the process.

The store watches each kind once and tells what changed, after it can be read: so a pass reads what woke it. kopf is responsible for the
process: the event loop, signals, start, end and the health endpoint (docs/decisions/0038-what-kopf-is-responsible-for.md). No handler of
kopf's watches anything, so it adds no finalizer and writes no annotation; what belongs to a resource goes with it by its owner references.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import kopf

from splitinference.controller.api.group import KIND
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest
from splitinference.controller.runtime.workqueue import Passes

Changed = Callable[[str, Manifest, bool], None]
"""Kind, object, and whether it is gone."""
Watch = Callable[[Changed], None]
"""Begins to watch, and calls what it is given from whatever thread."""


class Wakes:
    """Wakes the passes that a change is a reason for. Called in the event loop."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._seen: dict[str, str] = {}

    def changed(self, kind: str, thing: Manifest, gone: bool) -> None:
        """An object came, changed or went."""
        metadata = thing["metadata"]
        namespace = str(metadata.get("namespace", ""))
        if kind == "Node":
            self._passes.wake_all()
        elif kind == KIND:
            self._resource((namespace, str(metadata["name"])), thing, gone)
        elif kind == "Pod":
            labels = metadata.get("labels") or {}
            if labels.get(MANAGED_BY) == OURS:
                self._passes.wake_known((namespace, str(labels.get(INSTANCE, ""))))

    def _resource(self, key: tuple[str, str], body: Manifest, gone: bool) -> None:
        uid = str(body["metadata"].get("uid", key[1]))
        if gone:
            self._seen.pop(uid, None)
            self._passes.wake_known(key)
            return
        digest = hashlib.sha256(json.dumps(resource_content(body), sort_keys=True).encode()).hexdigest()
        if self._seen.get(uid) != digest:
            self._seen[uid] = digest
            self._passes.wake(key)


def register(registry: kopf.OperatorRegistry, passes: Passes, watch: Watch) -> None:
    """Put the handlers into the registry: the store begins to watch when kopf starts, and passes end when it ends."""

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_via_client(**kwargs)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # events are written by the passes, once for each decision
        settings.scanning.disabled = True  # kopf watches neither CRDs nor namespaces: it handles none
        loop, wakes = asyncio.get_running_loop(), Wakes(passes)

        def changed(kind: str, thing: Manifest, gone: bool) -> None:
            with suppress(RuntimeError):  # the loop has ended, and so will this
                loop.call_soon_threadsafe(wakes.changed, kind, thing, gone)

        watch(changed)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await passes.stop()


def resource_content(body: Mapping[str, Any]) -> object:
    """What of a resource is a reason to look: not its status, which the passes write themselves."""
    metadata = body["metadata"]
    return [metadata.get("generation"), metadata.get("annotations"), metadata.get("deletionTimestamp")]
