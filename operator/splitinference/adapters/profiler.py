"""Profiles of models: from a hub by HTTP, from folders on nodes and claims by a short-lived pod; kept in a ConfigMap.

Nothing here waits: each call takes one step towards the profile and says how far it is. To read a model again whose files were changed in
place, delete the ConfigMap `<si>-profile-<source>`.
"""

import base64
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from datetime import datetime
from typing import Any

from splitinference.adapters.hub import Hub, HubError
from splitinference.adapters.kube import KubeCluster
from splitinference.controller import profiling
from splitinference.controller.objects import COMPONENT
from splitinference.controller.ports import Clock, Manifest, Pending, RefusedError, Unreadable
from splitinference.controller.resource import HuggingFaceSource, Rejected, Resource, read_resource
from splitinference.core.model_files import TensorInfo, UnreadableModel
from splitinference.core.profile import Profile
from splitinference.core.profile_read import profile_from_model
from splitinference.settings import Settings

log = logging.getLogger(__name__)

_MIB = 2**20
_MOST_PROFILES = 64
_Reading = Future[str | Unreadable]


class Profiler:
    """Implements `Models`. May be used from many threads; passes of one resource do not overlap."""

    def __init__(self, cluster: KubeCluster, settings: Settings, clock: Clock, background: Executor) -> None:
        """`background` reads from the hub, which takes seconds."""
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._hub = Hub(settings.hugging_face_endpoint)
        self._background = background
        self._lock = threading.Lock()
        self._reading: dict[tuple[str, str, str], _Reading] = {}
        self._failed: dict[tuple[str, str, str], tuple[Unreadable, datetime]] = {}
        self._profiles: dict[tuple[str, str, str], Profile | Unreadable] = {}
        self._tidied: set[tuple[str, str, str]] = set()

    def profile(self, resource: Manifest) -> Profile | Pending | Unreadable:
        """The profile of `resource.spec.model`. Raises UnavailableError where the API server does not answer."""
        read = read_resource(resource)
        if isinstance(read, Rejected):
            return Unreadable(message=str(read))
        kept = self._cluster.get("ConfigMap", read.namespace, profiling.cache_name(read))
        packed = profiling.cached(read, kept) if kept else None
        if packed is None:
            found = self._from_hub(read, hub) if (hub := read.spec.model.source.hugging_face) else self._from_nodes(read)
            if not isinstance(found, str):
                return found
            packed = found
            try:
                self._cluster.apply(profiling.cache_object(read, packed))
            except RefusedError as error:
                return Unreadable(reason="ProfileNotKept", message=f"the profile's ConfigMap was refused: {error}")
        self._tidy(read)
        return self._parsed(read, packed)

    def _parsed(self, resource: Resource, packed: str) -> Profile | Unreadable:
        key = (packed, resource.spec.model.dtype, resource.spec.model.id)
        with self._lock:
            found = self._profiles.get(key)
        if found is None:
            found = _profile(resource, packed, self._settings.segment_runtime_mib * _MIB)
            with self._lock:
                if len(self._profiles) >= _MOST_PROFILES:
                    self._profiles.pop(next(iter(self._profiles)))
                self._profiles[key] = found
        return found

    # --- folders on nodes, claims --------------------------------------------------------------------------------------------------

    def _pods(self, resource: Resource, digest: str) -> list[Manifest]:
        labels = {COMPONENT: profiling.PROFILE, profiling.SOURCE: digest}
        pods = self._cluster.owned("Pod", resource.namespace, resource.name)
        return [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]

    def _from_nodes(self, resource: Resource) -> str | Pending | Unreadable:
        digest = profiling.source_digest(resource)
        pods = [pod for pod in self._pods(resource, digest) if "deletionTimestamp" not in pod["metadata"]]
        match profiling.next_step(resource, pods, self._cluster.nodes(), self._clock.now(), self._settings):
            case profiling.Start(nodes):
                self._tidied.discard((resource.namespace, resource.uid, digest))
                try:
                    for node in nodes:
                        self._cluster.create(profiling.profile_pod(resource, node, self._settings))
                except RefusedError as error:
                    return Unreadable(reason="ProfilePodRefused", message=f"the pod that reads the model was refused: {error}")
                return Pending(message=f"reading {resource.spec.model.source.describe()}")
            case profiling.Wait(message):
                return Pending(message=message)
            case profiling.Take(pod_name):
                packed = profiling.from_log(self._cluster.pod_log(resource.namespace, pod_name, profiling.PROFILE))
                if packed is not None:
                    return packed
                self._cluster.delete("Pod", resource.namespace, pod_name)
                return Pending(message=f"the log of {pod_name} was not whole; it reads again")
            case profiling.Failed(message, again):
                for name in again:
                    self._cluster.delete("Pod", resource.namespace, name)
                return Unreadable(message=message)

    def _tidy(self, resource: Resource) -> None:
        """Pods that have read are of no more use once the result is kept. Asked for once: later pods need a later reading."""
        digest = profiling.source_digest(resource)
        key = (resource.namespace, resource.uid, digest)
        if key in self._tidied or resource.spec.model.source.hugging_face:
            return
        for pod in self._pods(resource, digest):
            if "deletionTimestamp" not in pod["metadata"]:
                self._cluster.delete("Pod", resource.namespace, pod["metadata"]["name"])
        self._tidied.add(key)

    # --- the hub -------------------------------------------------------------------------------------------------------------------

    def _from_hub(self, resource: Resource, source: HuggingFaceSource) -> str | Pending | Unreadable:
        key = (resource.namespace, resource.name, profiling.source_digest(resource))
        now = self._clock.now()
        with self._lock:
            reading = self._reading.get(key)
            if reading is not None and reading.done():
                del self._reading[key]
                result = reading.result()
                reading = None
                if isinstance(result, str):
                    self._failed.pop(key, None)
                    return result
                self._failed[key] = (result, now)
            # A failure stands for a while; what is said does not change while it is tried again.
            failure, since = self._failed.get(key, (None, now))
            if reading is None and (failure is None or (now - since).total_seconds() > self._settings.profile_retry_seconds):
                token = self._token(resource, source)
                if isinstance(token, Unreadable):
                    return token
                self._reading[key] = self._background.submit(self._read_hub, source, token)
        return failure or Pending(message=f"reading {resource.spec.model.source.describe()}")

    def _read_hub(self, source: HuggingFaceSource, token: str | None) -> str | Unreadable:
        try:
            config, tensors = self._hub.read(source, token)
        except (HubError, UnreadableModel) as error:
            return Unreadable(message=str(error))
        return profiling.pack(config, tensor_table(tensors))

    def _token(self, resource: Resource, source: HuggingFaceSource) -> str | Unreadable | None:
        if (secret := source.token_secret_ref) is None:
            return None
        try:
            value = self._cluster.secret_value(resource.namespace, secret.name, secret.key)
        except RefusedError as error:
            return Unreadable(message=f"the Secret {secret.name} cannot be read: {error}")
        if value is None:
            return Unreadable(
                message=f"spec.model.source.huggingFace.tokenSecretRef: there is no Secret {secret.name} with a key {secret.key}"
            )
        return base64.b64decode(value).decode("utf-8", "replace").strip()


def _profile(resource: Resource, packed: str, runtime_bytes: int) -> Profile | Unreadable:
    content = profiling.unpack(packed)
    if content is None:
        name = profiling.cache_name(resource)
        return Unreadable(reason="ProfileDamaged", message=f"the ConfigMap {name} is damaged; delete it, and the model is read again")
    config, tensors = content
    try:
        table = {name: _tensor(entry) for name, entry in tensors.items()}
        model = resource.spec.model
        return profile_from_model(config, table, model.dtype, runtime_bytes=runtime_bytes, model=model.id)
    except (UnreadableModel, ValueError, TypeError) as error:
        return Unreadable(message=f"{resource.spec.model.source.describe()}: {error}")


def _tensor(entry: Any) -> TensorInfo:
    dtype, shape, size = entry
    return TensorInfo(dtype=str(dtype), shape=tuple(int(n) for n in shape), bytes=int(size))


def tensor_table(tensors: Mapping[str, TensorInfo]) -> dict[str, list[Any]]:
    """As the reading pod has it."""
    return {name: [t.dtype, list(t.shape), t.bytes] for name, t in tensors.items()}
