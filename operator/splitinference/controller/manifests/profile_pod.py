"""How a model's configuration is read where only nodes have it: a short-lived pod prints it, and a ConfigMap keeps what it printed.

Pure: what is seen (pods, their ages) → one next step. Of a folder on the nodes nobody knows which nodes have it, so a few are asked at
once, then the next; a claim is mounted wherever the scheduler can.
"""

import base64
import binascii
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from splitinference.controller.api.spec import Resource
from splitinference.controller.kube_values.bounded_text import gunzip, parse_json
from splitinference.controller.kube_values.machine import foreign, leaving, taints_of
from splitinference.controller.kube_values.start_failures import Limits, ended_with, hindrance
from splitinference.controller.manifests.model_volume import NO_WEIGHTS, model_files
from splitinference.controller.manifests.pod_parts import ObjectBody, container, environment, metadata, on_node, on_nodes_with, pod_spec
from splitinference.controller.manifests.pod_template import PodKind, finish
from splitinference.controller.spec_to_core.plan_constraints import tolerations
from splitinference.core.cost.checks.eligible import repelling
from splitinference.inpod import script
from splitinference.inpod.hub_client import COMMIT
from splitinference.inpod.packed import BEGIN, END
from splitinference.settings import Settings
from splitinference_modelfiles.stored.digests import MISMATCH, read_list
from splitinference_modelfiles.stored.headers import TensorInfo

PROFILE = "profile"
SOURCE = "splitinference.dev/source"
AT_ONCE = 3
ANY_NODE = ""
_SAYS_NOTHING = ("ContainerCreating", "NoScheduler")
KEY = "model.json.gz.b64"
"""The ConfigMap's key."""
_HUB_SECONDS = 120
"""A hub takes longer than a folder: two requests for each file."""
_MOST_BYTES = 32 * 2**20
_MOST_VALUES = 1_500_000
"""Of one model, unpacked: the largest known has 91 thousand tensors with six values each, in 9 MB."""


@dataclass(frozen=True)
class Start:
    """Make a pod that reads, on each of these nodes (ANY_NODE: where the scheduler can)."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Wait:
    """Pods are reading."""

    message: str


@dataclass(frozen=True)
class Take:
    """This pod has read it: take its log."""

    pod: str


@dataclass(frozen=True)
class Failed:
    """Nobody could read it. `again`: pods to delete, so that all nodes are asked anew. `mismatch`: some node has another model."""

    message: str
    again: tuple[str, ...]
    mismatch: bool = False


Step = Start | Wait | Take | Failed


def source_digest(resource: Resource) -> str:
    """Names the source and the digest that it must have: what is kept for another source is not this model's."""
    model = resource.spec.model
    source = json.dumps(model.source.model_dump(mode="json"), sort_keys=True) + (model.digest or "")
    if model.engine != "Auto" or model.file:  # so that what was read before there were engines is still this model's
        source += json.dumps([model.engine, model.file])
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def cache_name(resource: Resource) -> str:
    """The ConfigMap that keeps what was read: one for each source, as the old one still serves while a new one is read."""
    return f"{resource.name}-profile-{source_digest(resource)}"


def pod_name(resource: Resource, node: str, settings: Settings) -> str:
    """One name for each source, node and image."""
    content = json.dumps([source_digest(resource), node, reader_image(resource, settings)])
    return f"{resource.name}-profile-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def profile_pod(resource: Resource, node: str, settings: Settings) -> ObjectBody:
    """The pod: it runs in the segment image, as that is what these nodes have or will need, and in the resource's namespace, so that the
    operator itself needs neither the model's files nor the hub's token."""
    reader, volumes = _hub_reader(resource, settings) or _folder_reader(resource, settings)
    about = metadata(resource, pod_name(resource, node, settings), PROFILE, {SOURCE: source_digest(resource)})
    spec = pod_spec(
        resource,
        settings,
        [reader],
        restartPolicy="Never",
        activeDeadlineSeconds=deadline_seconds(resource, settings),
        terminationGracePeriodSeconds=1,
        volumes=volumes,
    )
    affinity = on_nodes_with([resource.spec.placement.node_selector], settings.architectures) if node == ANY_NODE else on_node(node)
    if affinity:
        spec["affinity"] = affinity
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": about | {"annotations": {"splitinference.dev/node": node}}, "spec": spec}
    return finish(pod, resource, settings, PodKind.JOBS)


def _folder_reader(resource: Resource, settings: Settings) -> tuple[ObjectBody, list[ObjectBody]]:
    files = model_files(resource, settings, reader_image(resource, settings), NO_WEIGHTS)
    source = resource.spec.model.source
    called = source.host_path.path if source.host_path else source.describe()
    model = resource.spec.model
    command = ["python3", "-I", "-c", script("read_model"), files.path, called, f"{settings.digest_seconds:g}", model.digest or ""]
    command += [model.engine, model.gguf or ""]
    return _reader(resource, settings, command, volumeMounts=[files.mount]), [files.volume]


def _hub_reader(resource: Resource, settings: Settings) -> tuple[ObjectBody, list[ObjectBody]] | None:
    if (hub := resource.spec.model.source.hugging_face) is None:
        return None
    command = ["python3", "-c", script("read_hub"), settings.hugging_face_endpoint.rstrip("/"), hub.repository, hub.revision]
    model = resource.spec.model
    command += [model.digest or "", model.engine, model.file or ""]
    variables = environment({"HOME": "/tmp"})
    if secret := hub.token_secret_ref:
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
    return _reader(resource, settings, command, env=variables), []


def reader_image(resource: Resource, settings: Settings) -> str:
    """The image of the segments that the model will have, as far as the spec tells: nodes have it, or will need it."""
    return settings.segment_llama_cpp_image if resource.spec.model.may_be_gguf else settings.segment_image


def _reader(resource: Resource, settings: Settings, command: list[str], **fields: Any) -> ObjectBody:
    resources = {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}
    return container(PROFILE, reader_image(resource, settings), settings, command=command, resources=resources, **fields)


def deadline_seconds(resource: Resource, settings: Settings) -> int:
    """A reading pod may take so long, image pull included."""
    model = resource.spec.model
    digests = settings.expected_digest_seconds if model.digest else 0 if model.source.hugging_face else int(settings.digest_seconds)
    return settings.profile_seconds + (_HUB_SECONDS if model.source.hugging_face else 0) + digests


def candidates(resource: Resource, nodes: Sequence[Mapping[str, Any]], settings: Settings) -> tuple[str, ...]:
    """Nodes on which the model may be read, by name; ANY_NODE for a claim and for a hub."""
    if resource.spec.model.source.host_path is None:
        return (ANY_NODE,)
    return tuple(sorted(node["metadata"]["name"] for node in nodes if _usable(resource, node, settings)))


def next_step(
    resource: Resource,
    pods: Sequence[Mapping[str, Any]],
    nodes: Sequence[Mapping[str, Any]],
    now: datetime,
    settings: Settings,
    *,
    warnings: Mapping[str, str] | None = None,
) -> Step:
    """What to do now. `pods` are those with the label of this resource's source and component `profile`; `warnings`: the newest event about
    a pod that waits in silence, by uid."""
    possible = candidates(resource, nodes, settings)
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    running: list[str] = []
    hindered: list[str] = []
    failures: dict[str, str] = {}
    youngest = None
    for node in possible:
        pod = by_name.get(pod_name(resource, node, settings))
        if pod is None:
            continue
        phase = _phase(pod)
        if phase == "Succeeded":
            return Take(pod["metadata"]["name"])
        created = _created(pod, now)
        # The kubelet ends a pod that takes too long; one that was never given to a kubelet is given up here.
        overdue = (now - created).total_seconds() > deadline_seconds(resource, settings) + 15
        if phase == "Failed" or overdue:
            failures[node] = _why(pod, resource, now) if phase == "Failed" else _unscheduled(pod, resource, settings, now)
            youngest = max(youngest or created, created)
        else:
            running.append(node)
            warning = (warnings or {}).get(str(pod["metadata"].get("uid", "")), "")
            if (cause := hindrance(pod, PROFILE, now, Limits.of(settings), warning)) is not None:
                hindered.append(f"on {node or 'no node yet'}: {cause.text}")
    what = resource.spec.model.source.describe()
    if not possible:
        return Failed(f"{what} cannot be read: no node is ready and matches spec.placement", again=())
    untried = [node for node in possible if node not in failures and node not in running]
    if running or untried:
        start = tuple(untried[: max(0, AT_ONCE - len(running))])
        where = f" on {', '.join(running)}" if running != [ANY_NODE] else ""
        return Start(start) if start else Wait("; ".join([f"reading {what}{where}", *hindered]))
    reasons = "; ".join(f"{node}: {why}" if node else why for node, why in sorted(failures.items()))
    due = youngest is not None and (now - youngest).total_seconds() > settings.profile_retry_seconds
    again = tuple(pod_name(resource, node, settings) for node in failures) if due else ()
    return Failed(f"{what} cannot be read: {reasons}", again=again, mismatch=any(MISMATCH in why for why in failures.values()))


def cache_object(resource: Resource, packed: str) -> ObjectBody:
    """The ConfigMap that keeps what was read, for the source that it was read from."""
    about = metadata(resource, cache_name(resource), PROFILE, {SOURCE: source_digest(resource)})
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {KEY: packed}}


def cached(resource: Resource, config_map: Mapping[str, Any]) -> str | None:
    """What the ConfigMap keeps of this source; None if it is of another one, or empty."""
    if (config_map["metadata"].get("labels") or {}).get(SOURCE) != source_digest(resource):
        return None
    found = (config_map.get("data") or {}).get(KEY)
    return str(found) if found else None


def from_log(log: str) -> str | None:
    """The packed model between the marks; None where the log is not whole."""
    _, begun, rest = log.partition(BEGIN)
    packed, ended, _ = rest.partition(END)
    return "".join(packed.split()) if begun and ended else None


def pack(
    config: Mapping[str, Any],
    tensors: Mapping[str, Sequence[Any]],
    files: Sequence[str] | None = None,
    content: Mapping[str, Any] | None = None,
) -> str:
    """As the reading pod packs it."""
    whole = {"config": config, "tensors": tensors} | ({} if files is None else {"files": files}) | ({"content": content} if content else {})
    text = json.dumps(whole, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@dataclass(frozen=True)
class Kept:
    """What was read of a model. `files`: names in its folder; None: the version that read it did not look. `root`: digest of the tensors'
    content, and `commit` of a hub's repository; empty where they are not known."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    files: tuple[str, ...] | None
    root: str = ""
    commit: str = ""


def unpack(packed: str) -> Kept | None:
    """What was read; None where it is damaged, or larger than a model's can be."""
    try:
        whole = parse_json(gunzip(base64.b64decode(packed, validate=True), _MOST_BYTES), _MOST_VALUES)
        tensors = {str(name): _tensor(entry) for name, entry in dict(whole["tensors"]).items()}
        files = whole.get("files")
        content = dict(whole.get("content") or {})
        root = read_list(content).root if "root" in content else ""
        commit = str(content.get("commit", ""))
        if commit and not COMMIT.fullmatch(commit):
            return None
        return Kept(dict(whole["config"]), tensors, None if files is None else tuple(map(str, files)), root, commit)
    except (binascii.Error, ValueError, KeyError, TypeError, AttributeError):
        return None


def _tensor(entry: Sequence[Any]) -> TensorInfo:
    dtype, shape, size = entry
    return TensorInfo(dtype=str(dtype), shape=tuple(int(n) for n in shape), bytes=int(size))


def _usable(resource: Resource, node: Mapping[str, Any], settings: Settings) -> bool:
    labels = node["metadata"].get("labels") or {}
    conditions = {c["type"]: c["status"] for c in (node.get("status") or {}).get("conditions") or ()}
    if foreign(labels, settings) or leaving(node, settings) or conditions.get("Ready") != "True":
        return False
    if any(labels.get(key) != value for key, value in resource.spec.placement.node_selector.items()):
        return False
    return repelling(taints_of(node), tolerations(resource.spec)) is None


def _created(pod: Mapping[str, Any], now: datetime) -> datetime:
    text = pod["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text) if text else now


def _phase(pod: Mapping[str, Any]) -> str:
    """How far our own container is, in the words for pods: another that was added to the pod may run on for ever."""
    ended = ended_with(pod, PROFILE)
    if ended is not None and "exitCode" in ended:
        return "Succeeded" if ended["exitCode"] == 0 else "Failed"
    return str((pod.get("status") or {}).get("phase"))


def _why(pod: Mapping[str, Any], resource: Resource, now: datetime) -> str:
    status = pod.get("status") or {}
    if message := (ended_with(pod, PROFILE) or {}).get("message"):
        return str(message).strip().splitlines()[-1]
    if (cause := hindrance(pod, PROFILE, now)) is not None and cause.reason not in _SAYS_NOTHING:
        return cause.text
    if status.get("reason") == "DeadlineExceeded":
        folder = resource.spec.model.source.host_path is not None
        return "the pod could not start in time" + (": most likely the node has no such folder" if folder else "")
    return str(status.get("message") or status.get("reason") or "the pod failed and left no message")


def _unscheduled(pod: Mapping[str, Any], resource: Resource, settings: Settings, now: datetime) -> str:
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") != "True":
            return f"no node was found for the pod: {condition.get('message', '')}".strip(": ")
    cause = hindrance(pod, PROFILE, now, Limits.of(settings))
    return f"the pod did not end within {deadline_seconds(resource, settings)} s" + (f": {cause.text}" if cause else "")
