"""Profiles of models: read by a short-lived pod in the resource's namespace, from a hub, a folder on nodes or a claim; kept in a ConfigMap.

Nothing here waits: each call takes one step towards the profile and says how far it is. To read a model again whose files were changed in
place, delete the ConfigMap `<si>-profile-<source>`.
"""

import threading

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.api.spec import Resource, not_served
from splitinference.controller.kube_values.start_failures import Told
from splitinference.controller.manifests import profile_pod
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.ports import Clock, Manifest, NameTakenError, Pending, RefusedError, Unreadable
from splitinference.controller.trust.ownership import owner_uid
from splitinference.core.model_files.config import profile_from_model
from splitinference.core.model_files.safetensors import with_content
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings
from splitinference_modelfiles.stored.digests import MISMATCH
from splitinference_modelfiles.stored.headers import ModelRefusedError

_MIB = 2**20
_MOST_PROFILES = 64


class Profiler:
    """Implements `Models`. May be used from many threads; passes of one resource do not overlap."""

    def __init__(self, cluster: KubeCluster, settings: Settings, clock: Clock) -> None:
        self._cluster = cluster
        self._settings = settings
        self._clock = clock
        self._lock = threading.Lock()
        self._unpacking = threading.Lock()
        self._profiles: dict[tuple[str, str, str], Profile | Unreadable] = {}
        self._tidied: set[tuple[str, str, str]] = set()
        self._told: dict[str, Told] = {}

    def profile(self, resource: Resource) -> Profile | Pending | Unreadable:
        """The profile of `resource.spec.model`. Raises UnavailableError where the API server does not answer."""
        kept = self._cluster.get("ConfigMap", resource.namespace, profile_pod.cache_name(resource))
        # Somebody else's ConfigMap of this name says nothing about the model.
        packed = profile_pod.cached(resource, kept) if kept and owner_uid(kept) == resource.uid else None
        if packed is None:
            found = self._read(resource)
            if not isinstance(found, str):
                return found
            packed = found
            try:
                self._cluster.apply(profile_pod.cache_object(resource, packed))
            except NameTakenError as error:
                return Unreadable(reason="NameTaken", message=str(error))
            except RefusedError as error:
                return Unreadable(reason="ProfileNotKept", message=f"the profile's ConfigMap was refused: {error}")
        self._tidy(resource)
        return self._parsed(resource, packed)

    def _parsed(self, resource: Resource, packed: str) -> Profile | Unreadable:
        model = resource.spec.model
        key = (packed, f"{model.dtype} {model.weights}", f"{model.id} {model.digest or ''}")
        with self._lock:
            found = self._profiles.get(key)
        if found is None:
            with self._unpacking:  # one at a time: each may take a hundred megabytes for a moment
                found = profile_from_cache(resource, packed, self._settings)
            with self._lock:
                if len(self._profiles) >= _MOST_PROFILES:
                    self._profiles.pop(next(iter(self._profiles)))
                self._profiles[key] = found
        if isinstance(found, Profile) and (problem := not_served(resource.spec, found)) is not None:
            return Unreadable(reason="ModelNotServed", message=problem)
        return found

    # --- reading pods ----------------------------------------------------------------------------------------------------------------

    def _pods(self, resource: Resource, digest: str) -> list[Manifest]:
        labels = {COMPONENT: profile_pod.PROFILE, profile_pod.SOURCE: digest}
        pods = self._cluster.owned("Pod", resource.namespace, resource.name)
        return [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]

    def _read(self, resource: Resource) -> str | Pending | Unreadable:
        digest = profile_pod.source_digest(resource)
        pods = [pod for pod in self._pods(resource, digest) if "deletionTimestamp" not in pod["metadata"]]
        now = self._clock.now()
        # Why a pod waits, such as for a folder that its node lacks, only its events say.
        told = self._told.setdefault(resource.uid, Told())
        warnings = told.warnings([(pod, profile_pod.PROFILE) for pod in pods], now, self._cluster.pod_warning)
        match profile_pod.next_step(resource, pods, self._cluster.nodes(), now, self._settings, warnings=warnings):
            case profile_pod.Start(nodes):
                self._tidied.discard((resource.namespace, resource.uid, digest))
                try:
                    for node in nodes:
                        self._cluster.create(profile_pod.profile_pod(resource, node, self._settings))
                except RefusedError as error:
                    return Unreadable(reason="ProfilePodRefused", message=f"the pod that reads the model was refused: {error}")
                return Pending(message=f"reading {resource.spec.model.source.describe()}")
            case profile_pod.Wait(message):
                return Pending(message=message)
            case profile_pod.Take(pod_name):
                packed = profile_pod.from_log(self._cluster.pod_log(resource.namespace, pod_name, profile_pod.PROFILE))
                if packed is not None:
                    return packed
                self._cluster.delete("Pod", resource.namespace, pod_name)
                return Pending(message=f"the log of {pod_name} was not whole; it reads again")
            case profile_pod.Failed(message, again, mismatch):
                for name in again:
                    self._cluster.delete("Pod", resource.namespace, name)
                return Unreadable(reason=MISMATCH, message=message) if mismatch else Unreadable(message=message)

    def _tidy(self, resource: Resource) -> None:
        """Pods that have read are of no more use once the result is kept. Asked for once: later pods need a later reading."""
        digest = profile_pod.source_digest(resource)
        key = (resource.namespace, resource.uid, digest)
        if key in self._tidied:
            return
        for pod in self._pods(resource, digest):
            if "deletionTimestamp" not in pod["metadata"]:
                self._cluster.delete("Pod", resource.namespace, pod["metadata"]["name"])
        self._tidied.add(key)
        self._told.pop(resource.uid, None)


def profile_from_cache(resource: Resource, packed: str, settings: Settings) -> Profile | Unreadable:
    """The profile of a model from the text in the resource's ConfigMap, or why it cannot be had."""
    content = profile_pod.unpack(packed)
    if content is None:
        name = profile_pod.cache_name(resource)
        return Unreadable(reason="ProfileDamaged", message=f"the ConfigMap {name} is damaged; delete it to have the model read again")
    model = resource.spec.model
    if model.digest and content.root != model.digest:
        name, found = profile_pod.cache_name(resource), content.root or "not known"
        message = f"the digest of what was read is {found}, spec.model.digest is {model.digest}. To read again, delete the ConfigMap {name}"
        return Unreadable(reason=MISMATCH, message=message)
    try:
        profile = profile_from_model(
            content.config,
            content.tensors,
            model.dtype,
            files=content.files,
            runtime_bytes=settings.segment_runtime_mib * _MIB,
            llama_runtime_bytes=settings.segment_llama_cpp_runtime_mib * _MIB,
            model=model.id,
            weights=model.weights,
        )
        return with_content(profile, content.root, content.commit)
    except ModelRefusedError as error:
        return Unreadable(reason="ModelNotServed", message=f"{model.source.describe()}: {error}")
    except (ValueError, TypeError) as error:
        return Unreadable(message=f"{model.source.describe()}: {error}")
