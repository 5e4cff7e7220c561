"""How a pod comes to the model's files: a volume that has them, or an init container that fetches what the pod needs."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from splitinference.controller.api.sections.model_spec import HuggingFaceSource
from splitinference.controller.api.spec import Resource
from splitinference.controller.manifests.pod_parts import CACHE_FOLDER, MODEL_FOLDER, ObjectBody, container, environment
from splitinference.inpod import script
from splitinference.settings import Settings

NO_WEIGHTS = "none"
ADAPTER = "adapter"
TOKENIZER_FOLDER = "/tokenizer"


@dataclass(frozen=True)
class ModelFiles:
    """The pod's parts: where the model's folder, or its GGUF file, is in the container, the volume, its mount, what fetches it, and volumes
    that only that needs."""

    path: str
    volume: ObjectBody
    mount: ObjectBody
    init: tuple[ObjectBody, ...] = ()
    more_volumes: tuple[ObjectBody, ...] = ()


def model_files(
    resource: Resource, settings: Settings, image: str, layers: str, commit: str = "", *, gguf: Sequence[str] = ()
) -> ModelFiles:
    """`layers` is `start:end/count`, `none` for a pod that needs no weights, or `adapter` where the source has one; `image` has a Python
    for the init container. `commit`: what the revision meant when the model was read; all pods fetch that one. `gguf`: the files of a GGUF
    model; the first is the path."""
    found = _model_files(resource, settings, image, layers, commit=commit, gguf=gguf)
    name = gguf[0].rpartition("/")[2] if found.init and gguf else next(iter(gguf), "")
    return replace(found, path=f"{found.path}/{name}") if gguf else found


def _model_files(resource: Resource, settings: Settings, image: str, layers: str, *, commit: str, gguf: Sequence[str]) -> ModelFiles:
    source = resource.spec.model.source
    read_only = {"name": "model", "mountPath": MODEL_FOLDER, "readOnly": True}
    if source.gguf is not None:
        read_only["mountPath"] = f"{MODEL_FOLDER}/{source.gguf}"
    if source.host_path:
        kind = "File" if source.gguf is not None else "Directory"
        volume = {"name": "model", "hostPath": {"path": source.host_path.path, "type": kind}}
        return ModelFiles(path=MODEL_FOLDER, volume=volume, mount=read_only)
    if claim := source.persistent_volume_claim:
        volume = {"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": True}}
        mount = read_only | ({"subPath": claim.path.strip("/")} if claim.path.strip("/") else {})
        return ModelFiles(path=MODEL_FOLDER, volume=volume, mount=mount)
    hub = source.hugging_face
    assert hub is not None  # noqa: S101 - a source is exactly one of the three
    return _fetched(_pinned(hub, commit), settings, image, layers, gguf)


def tokenizer_files(resource: Resource, settings: Settings, image: str, commit: str, gguf: Sequence[str]) -> ModelFiles:
    """What a gateway needs of a GGUF model: a folder that an init container writes from the file's metadata."""
    hub = resource.spec.model.source.hugging_face
    wrote = {"name": "tokenizer", "mountPath": TOKENIZER_FOLDER}
    command = ["python3", "-I", "-c", script("write_tokenizer"), TOKENIZER_FOLDER, gguf[0]]
    volumes: tuple[ObjectBody, ...] = ()
    mounts, variables = [wrote], environment({"HOME": "/tmp"})
    if hub is not None:
        pinned = _pinned(hub, commit)
        command += [settings.hugging_face_endpoint.rstrip("/"), pinned.repository, pinned.revision]
        variables += _token(hub)
    else:
        files = _model_files(resource, settings, image, NO_WEIGHTS, commit=commit, gguf=gguf)
        command.append(files.path)
        volumes, mounts = (files.volume,), [wrote, files.mount]
    resources = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    write = container("write-tokenizer", image, settings, command=command, env=variables, resources=resources, volumeMounts=mounts)
    volume = {"name": "tokenizer", "emptyDir": {"sizeLimit": "256Mi"}}
    return ModelFiles(TOKENIZER_FOLDER, volume, {**wrote, "readOnly": True}, (write,), volumes)


def _pinned(hub: HuggingFaceSource, commit: str) -> HuggingFaceSource:
    return hub.model_copy(update={"revision": commit}) if commit else hub


def _token(hub: HuggingFaceSource) -> list[ObjectBody]:
    if (secret := hub.token_secret_ref) is None:
        return []
    return [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}}]


def _fetched(hub: HuggingFaceSource, settings: Settings, image: str, layers: str, gguf: Sequence[str]) -> ModelFiles:
    # Of a GGUF model a folder holds the part for these layers alone.
    part = "-" + re.sub("[:/]", "-", layers) if gguf else ""
    if settings.model_cache_path:
        root = CACHE_FOLDER
        folder = f"{CACHE_FOLDER}/{cache_folder(hub)}{part}"
        volume = {"name": "model", "hostPath": {"path": settings.model_cache_path, "type": "Directory"}}
    else:
        root = folder = MODEL_FOLDER
        volume = {"name": "model", "emptyDir": {}}
    arguments = [settings.hugging_face_endpoint.rstrip("/"), hub.repository, hub.revision, folder, layers, *gguf[:1]]
    arguments += [CACHE_FOLDER, f"{settings.model_cache_gib:g}"] if settings.model_cache_path else []
    variables = environment({"HOME": "/tmp"}) + _token(hub)
    fetch = container(
        "fetch-model",
        image,
        settings,
        command=["python3", "-c", script("fetch_gguf" if gguf else "fetch_model"), *arguments],
        env=variables,
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        volumeMounts=[{"name": "model", "mountPath": root}],
    )
    return ModelFiles(path=folder, volume=volume, mount={"name": "model", "mountPath": root, "readOnly": True}, init=(fetch,))


def cache_folder(hub: HuggingFaceSource) -> str:
    """A folder name for one revision of one repository: readable, and never the same for two."""
    digest = hashlib.sha256(f"{hub.repository}@{hub.revision}".encode()).hexdigest()[:8]
    return f"{hub.repository.replace('/', '--')}-{digest}"
