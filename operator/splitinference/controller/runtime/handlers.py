"""kopf, thin: what changed → which passes are woken. Only `on.event` handlers, so kopf adds no finalizer and writes no annotation; what
belongs to a resource goes with it by its owner references. What an event tells is handed on before a pass is woken: passes read from
watches of their own, which may be behind. Of nodes there is one watch only, that which passes read from.
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import kopf

from splitinference.controller.api.spec import GROUP, KIND, PLURAL, VERSION
from splitinference.controller.manifests.pod_parts import INSTANCE, MANAGED_BY, OURS
from splitinference.controller.ports import Manifest
from splitinference.controller.runtime.workqueue import Passes

Noticed = Callable[[str, Manifest, bool], None]
"""Kind, object, and whether it is gone."""
Notify = Callable[[Callable[[], None]], None]
"""Takes what is to be called, from whatever thread, after each change."""


def register(registry: kopf.OperatorRegistry, passes: Passes, noticed: Noticed, on_nodes: Notify, *, everywhere: bool = True) -> None:
    """Put the handlers into the registry. `noticed` is told each event before the passes that it wakes; `on_nodes` tells of nodes. Not
    `everywhere`: in some namespaces only, which are taken to be there, since listing namespaces is a right that the operator lacks."""
    seen: dict[str, str] = {}

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_via_client(**kwargs)

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False  # events are written by the passes, once for each decision
        settings.watching.label_selectors["v1", "pods"] = f"{MANAGED_BY}={OURS}"
        settings.watching.server_timeout = 600
        settings.scanning.disabled = not everywhere
        loop = asyncio.get_running_loop()

        def nodes_changed() -> None:
            with suppress(RuntimeError):  # the loop has ended, and so will this
                loop.call_soon_threadsafe(passes.wake_all)

        on_nodes(nodes_changed)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await passes.stop()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def resource_changed(type: str | None, body: kopf.Body, namespace: str | None, name: str, **_: Any) -> None:
        noticed(KIND, dict(body), type == "DELETED")
        uid = str(body["metadata"].get("uid", name))
        if type == "DELETED":
            seen.pop(uid, None)
            passes.wake_known((str(namespace), name))
        elif _changed(seen, uid, resource_content(body)):
            passes.wake((str(namespace), name))

    @kopf.on.event("v1", "pods", labels={MANAGED_BY: OURS}, registry=registry)
    async def pod_changed(type: str | None, body: kopf.Body, labels: Mapping[str, str], namespace: str | None, **_: Any) -> None:
        noticed("Pod", dict(body), type == "DELETED")
        passes.wake_known((str(namespace), labels.get(INSTANCE, "")))


def resource_content(body: Mapping[str, Any]) -> object:
    """What of a resource is a reason to look: not its status, which the passes write themselves."""
    metadata = body["metadata"]
    return [metadata.get("generation"), metadata.get("annotations"), metadata.get("deletionTimestamp")]


def _changed(seen: dict[str, str], key: str, content: object) -> bool:
    """Note the content under the key; whether it is another than before."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=_plain).encode()).hexdigest()
    if seen.get(key) == digest:
        return False
    seen[key] = digest
    return True


def _plain(value: object) -> object:
    """kopf's views of mappings and lists as JSON has them."""
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
