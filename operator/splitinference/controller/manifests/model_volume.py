"""How a pod comes to the model's files: a volume that has them, or an init container that fetches what the pod needs."""

import hashlib
from dataclasses import dataclass

from splitinference.controller.api.spec import HuggingFaceSource, Resource
from splitinference.controller.manifests.pod_parts import CACHE_FOLDER, MODEL_FOLDER, Manifest, container, environment
from splitinference.inpod import script
from splitinference.settings import Settings

NO_WEIGHTS = "none"


@dataclass(frozen=True)
class ModelFiles:
    """The pod's parts: where the model's folder is in the container, the volume, its mount, and what fetches it."""

    path: str
    volume: Manifest
    mount: Manifest
    init: tuple[Manifest, ...] = ()


def model_files(resource: Resource, settings: Settings, image: str, layers: str, commit: str = "") -> ModelFiles:
    """`layers` is `start:end/count`, or `none` for a pod that needs no weights; `image` has a Python for the init container. `commit`: what
    the revision meant when the model was read; all pods fetch that one."""
    source = resource.spec.model.source
    read_only = {"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True}
    if source.host_path:
        volume = {"name": "model", "hostPath": {"path": source.host_path.path, "type": "Directory"}}
        return ModelFiles(path=MODEL_FOLDER, volume=volume, mount=read_only)
    if claim := source.persistent_volume_claim:
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        mount = read_only | ({"subPath": claim.path.strip("/")} if claim.path.strip("/") else {})
        return ModelFiles(path=MODEL_FOLDER, volume=volume, mount=mount)
    hub = source.hugging_face
    assert hub is not None  # noqa: S101 - a source is exactly one of the three
    pinned = hub.model_copy(update={"revision": commit}) if commit else hub
    return _fetched(pinned, settings, image, layers)


def _fetched(hub: HuggingFaceSource, settings: Settings, image: str, layers: str) -> ModelFiles:
    if settings.model_cache_path:
        root = CACHE_FOLDER
        folder = f"{CACHE_FOLDER}/{cache_folder(hub)}"
        volume = {"name": "model", "hostPath": {"path": settings.model_cache_path, "type": "Directory"}}
    else:
        root = folder = MODEL_FOLDER
        volume = {"name": "model", "emptyDir": {}}
    arguments = [settings.hugging_face_endpoint.rstrip("/"), hub.repository, hub.revision, folder, layers]
    arguments += [CACHE_FOLDER, f"{settings.model_cache_gib:g}"] if settings.model_cache_path else []
    variables = environment({"HOME": "/tmp"})
    if secret := hub.token_secret_ref:
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
    fetch = container(
        "fetch-model",
        image,
        settings,
        command=["python3", "-c", script("fetch_model"), *arguments],
        env=variables,
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        volumeMounts=[{"name": "model", "mountPath": root}],
    )
    return ModelFiles(path=folder, volume=volume, mount={"name": "model", "mountPath": root, "readOnly": True}, init=(fetch,))


def cache_folder(hub: HuggingFaceSource) -> str:
    """A folder name for one revision of one repository: readable, and never the same for two."""
    digest = hashlib.sha256(f"{hub.repository}@{hub.revision}".encode()).hexdigest()[:8]
    return f"{hub.repository.replace('/', '--')}-{digest}"
