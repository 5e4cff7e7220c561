"""What nodes compute, measured: which node is next, the pod that measures it, what that says, and what the planner takes of it. Pure.

One pod at a time, so many an hour, on nodes where no segment of ours runs. A node is measured when it joins, when its system is another
(kernel, machine, cores), and rarely otherwise. Labels win over what is measured; that wins over the settings' defaults.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field, ValidationError

from splitinference.controller.cluster_state.figures.node_metrics import GPU, PREFIX, processor_of
from splitinference.controller.cluster_state.pods import is_ours, is_over, labels_of, node_of
from splitinference.controller.manifests import pod_parts
from splitinference.controller.manifests.pod_parts import COMPONENT, INSTANCE, MANAGED_BY, OURS, container, on_node
from splitinference.controller.manifests.segment import SEGMENT
from splitinference.controller.ports import Manifest
from splitinference.core.values.value import Value
from splitinference.settings import Settings

MEASURE = "node-measure"
"""Component and instance of the pods and of the ConfigMap."""
MEASURED = "measured"
"""Key of a node as it is shown to the planner: what was measured of it."""
STORE = "splitinference-measured-nodes"
LEAST_SHARE = 0.04
"""A measurement that got less of the node than this says little."""
POD_SECONDS = 300
"""A pod may take so long, image pull and imports included."""
UNPLACED_SECONDS = 30
"""And so long until the scheduler has found room for it: others wait meanwhile."""
FIRST_RETRY, LAST_RETRY = timedelta(minutes=10), timedelta(days=1)
_KEPT_FAILURES = 8
_MEMORY = "448Mi"
"""Measured: 303 MiB of its own at most, and 133 of mapped files."""
_COMPUTE, _BANDWIDTH = f"{PREFIX}compute-gflops", f"{PREFIX}memory-bandwidth-gbps"
_SYSTEM = "splitinference.dev/system"
_NODE = "splitinference.dev/node"


class Rates(Value):
    """GFLOP/s of products and GB/s of weights that are streamed, of the whole node; `launch_ms`: what a layer takes besides, in ms."""

    gflops: float = Field(gt=0, lt=1e7, allow_inf_nan=False)
    gbps: float = Field(gt=0, lt=1e5, allow_inf_nan=False)
    launch_ms: float = Field(default=0.0, ge=0, le=1e4, allow_inf_nan=False)


class Record(Value):
    """What is known of one node. `system`: of which kernel, machine and cores; `failures`: in a row, `why` the last one."""

    name: str
    system: str
    time: datetime
    rates: Mapping[str, Rates] = Field(default_factory=dict)
    share: float = 0.0
    cpu: str = Field(default="", max_length=100)
    image: str = ""
    failures: int = Field(default=0, ge=0)
    why: str = Field(default="", max_length=300)

    def rate(self, dtype: str) -> Rates | None:
        """For this data type, else for the nearest that was measured."""
        return self.rates.get(dtype) or self.rates.get("bfloat16") or self.rates.get("float32")


Records = Mapping[str, Record]
"""By the node's UID."""


@dataclass(frozen=True)
class Step:
    """What to do now: make a pod, delete pods, keep new records. All may be nothing."""

    create: Manifest | None = None
    delete: tuple[str, ...] = ()
    records: Records = field(default_factory=dict)


def system_of(node: Manifest) -> str:
    """Names what a node's figures depend on: its machine, kernel and cores."""
    status = node.get("status") or {}
    info = status.get("nodeInfo") or {}
    parts = [info.get(key, "") for key in ("machineID", "systemUUID", "kernelVersion", "architecture")]
    return hashlib.sha256(json.dumps([*parts, (status.get("allocatable") or {}).get("cpu", "")]).encode()).hexdigest()[:12]


def uid_of(node: Manifest) -> str:
    """The node's UID; a node of the same name later is another."""
    return str(node["metadata"].get("uid", ""))


def is_labelled(node: Manifest) -> bool:
    """Whether labels or annotations say both figures."""
    said = {**labels_of(node), **(node["metadata"].get("annotations") or {})}
    return _COMPUTE in said and _BANDWIDTH in said


def measurable(node: Manifest) -> bool:
    """Whether a pod may be put there, and would measure what a segment computes with: not on GPUs."""
    conditions = {c.get("type"): c.get("status") for c in (node.get("status") or {}).get("conditions") or ()}
    fits = labels_of(node).get("kubernetes.io/os", "linux") == "linux" and processor_of(node) != GPU
    spec, metadata = node.get("spec") or {}, node["metadata"]
    alive = conditions.get("Ready") == "True" and not spec.get("unschedulable") and not metadata.get("deletionTimestamp")
    return bool(fits and alive and metadata.get("uid"))


def _tolerated(node: Manifest, tolerations: Sequence[Mapping[str, Any]]) -> bool:
    def by(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
        if toleration.get("effect") not in (None, "", taint.get("effect")):
            return False
        if toleration.get("operator") == "Exists":
            return toleration.get("key") in (None, "", taint.get("key"))
        return bool(toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or ""))

    taints = [t for t in (node.get("spec") or {}).get("taints") or () if t.get("effect") in ("NoSchedule", "NoExecute")]
    return all(any(by(toleration, taint) for toleration in tolerations) for taint in taints)


def is_known(record: Record | None, node: Manifest) -> bool:
    """Whether the record has figures of the node as it is."""
    return record is not None and bool(record.rates) and record.system == system_of(node)


def pending(nodes: Sequence[Manifest], records: Records, settings: Settings) -> tuple[str, ...]:
    """Nodes that a first plan may wait for: they will be measured, are not yet, did not fail, and no label says what they are."""
    return tuple(
        str(node["metadata"]["name"])
        for node in nodes
        if measurable(node)
        and _tolerated(node, settings.measuring_tolerations)
        and not is_labelled(node)
        and not is_known(found := records.get(uid_of(node)), node)
        and not (found is not None and found.failures and found.system == system_of(node))
    )


@dataclass(frozen=True)
class There:
    """What there is: nodes, pods of all kinds, and those that measure, in the operator's namespace."""

    nodes: Sequence[Manifest]
    pods: Sequence[Manifest]
    measuring: Sequence[Manifest]


def next_step(there: There, records: Records, now: datetime, settings: Settings) -> Step:
    """What to do now."""
    nodes = there.nodes
    # Labels are anybody's to set; only in the operator's namespace they say something.
    mine = [pod for pod in there.measuring if pod["metadata"].get("namespace") == settings.operator_namespace]
    by_uid = {uid_of(node): node for node in nodes}
    found: dict[str, Record] = {}
    done: list[str] = []
    for pod in mine:
        annotations = pod["metadata"].get("annotations") or {}
        node = by_uid.get(str(annotations.get(_NODE, "")))
        placed = bool((pod.get("spec") or {}).get("nodeName"))
        late = (now - _created(pod, now)).total_seconds() > (POD_SECONDS + 15 if placed else UNPLACED_SECONDS)
        if node is None or is_over(pod) or late:
            done.append(str(pod["metadata"]["name"]))
            if node is not None and not pod["metadata"].get("deletionTimestamp"):
                found[uid_of(node)] = _record(pod, node, records.get(uid_of(node)), now)
    running = [pod for pod in mine if pod["metadata"]["name"] not in done]
    known = {uid: record for uid, record in records.items() if uid in by_uid or not nodes}
    after = {**known, **found}
    create = None
    if not running and not done and _recent(after, now) < settings.measurements_per_hour:
        create = _next_pod(nodes, there.pods, after, now, settings)
    return Step(create=create, delete=tuple(done), records=after if found or len(known) < len(records) else {})


def _recent(records: Records, now: datetime) -> int:
    return sum(1 for record in records.values() if timedelta(0) <= now - record.time < timedelta(hours=1))


def _next_pod(nodes: Sequence[Manifest], pods: Sequence[Manifest], records: Records, now: datetime, settings: Settings) -> Manifest | None:
    serving = {node_of(pod) for pod in pods if is_ours(pod, SEGMENT) and not is_over(pod)}
    due = [
        node
        for node in nodes
        if measurable(node)
        and node["metadata"]["name"] not in serving
        and _tolerated(node, settings.measuring_tolerations)
        and _is_due(records.get(uid_of(node)), node, now, settings)
    ]
    # Those of which nothing is known first.
    due.sort(key=lambda node: (is_labelled(node), uid_of(node) in records, str(node["metadata"]["name"])))
    return measuring_pod(due[0], settings) if due else None


def _is_due(record: Record | None, node: Manifest, now: datetime, settings: Settings) -> bool:
    if record is None or record.system != system_of(node):
        return True
    if record.failures:
        return now - record.time >= min(LAST_RETRY, FIRST_RETRY * (1 << min(record.failures - 1, _KEPT_FAILURES)))
    return now - record.time >= timedelta(days=settings.measure_again_days)


def measuring_pod(node: Manifest, settings: Settings) -> Manifest:
    """The pod that measures this node: with the processors that a segment would get, and nothing else of the cluster."""
    name, limit = str(node["metadata"]["name"]), settings.segment_cpu_limit
    content = json.dumps([uid_of(node), system_of(node), settings.segment_image])
    allowed = {"SI_THREADS": "1", "SI_MILLICORES": "1m"}
    resources = {"requests": {"cpu": settings.segment_cpu_request, "memory": _MEMORY}, "limits": {"memory": _MEMORY}}
    if limit:
        resources["limits"]["cpu"] = limit
    measurer = container(
        MEASURE,
        settings.segment_image,
        settings,
        command=["segment-measure"],
        # Without a limit the kubelet says the node's allocatable cores, as it does to segments.
        env=[
            {"name": key, "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": divisor}}}
            for key, divisor in allowed.items()
        ],
        resources=resources,
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
    )
    spec: pod_parts.ObjectBody = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Never",
        "activeDeadlineSeconds": POD_SECONDS,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.pod_user,
            "runAsGroup": settings.pod_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": on_node(name),
        "containers": [measurer],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}],
    }
    if settings.measuring_priority_class:
        spec["priorityClassName"] = settings.measuring_priority_class
    if settings.measuring_tolerations:
        spec["tolerations"] = [dict(toleration) for toleration in settings.measuring_tolerations]
    if settings.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.pull_secrets]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"{MEASURE}-{hashlib.sha256(content.encode()).hexdigest()[:8]}",
            "namespace": settings.operator_namespace,
            "labels": {"app.kubernetes.io/name": OURS, MANAGED_BY: OURS, INSTANCE: MEASURE, COMPONENT: MEASURE},
            "annotations": {_NODE: uid_of(node), _SYSTEM: system_of(node)},
        },
        "spec": spec,
    }


def _record(pod: Manifest, node: Manifest, before: Record | None, now: datetime) -> Record:
    """What the pod says; where that is nothing, that it failed, beside the figures that are known."""
    name, system = str(node["metadata"]["name"]), str((pod["metadata"].get("annotations") or {}).get(_SYSTEM, ""))
    states = (pod.get("status") or {}).get("containerStatuses") or ()
    ended: list[Mapping[str, Any]] = [s["state"]["terminated"] for s in states if (s.get("state") or {}).get("terminated")]
    terminated = ended[0] if ended else {}
    image = next((str(s.get("imageID", ""))[-71:] for s in states), "")
    said = read_figures(str(terminated.get("message") or ""))
    if isinstance(said, Record) and (pod.get("status") or {}).get("phase") == "Succeeded":
        return said.model_copy(update={"name": name, "system": system, "time": now, "image": image})
    why = said if isinstance(said, str) and terminated else _why(pod)
    kept = before if before is not None and before.system == system else Record(name=name, system=system, time=now)
    return kept.model_copy(update={"time": now, "failures": kept.failures + 1, "why": why[:300]})


def read_figures(text: str) -> Record | str:
    """The figures of a termination message; else why they are none."""
    try:
        found = json.loads(text)
        dtypes = {name: found[name] for name in ("bfloat16", "float32") if name in found}
        record = Record.model_validate(
            {
                "name": "",
                "system": "",
                "time": datetime.min.replace(tzinfo=UTC),
                "rates": dtypes,
                "share": found["share"],
                "cpu": str(found.get("cpu", ""))[:80],
            }
        )
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return f"the pod's output has no figures: {text.strip().splitlines()[-1][:200]}" if text.strip() else "the pod wrote no output"
    if not record.rates:
        return "the pod measured no data type"
    if not LEAST_SHARE <= record.share <= 1:
        return f"other work used the node: the measurement got only {record.share:.0%} of it"
    return record


def _why(pod: Manifest) -> str:
    status = pod.get("status") or {}
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") != "True":
            return f"the pod cannot be scheduled: {condition.get('message', '')}"
    for state in status.get("containerStatuses") or ():
        waiting = (state.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating"):
            return f"{waiting['reason']}: {waiting.get('message', '')}"
    return str(status.get("message") or status.get("reason") or f"the pod did not end within {POD_SECONDS} s")


def _created(pod: Manifest, now: datetime) -> datetime:
    text = pod["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text) if text else now


# --- keeping and showing -------------------------------------------------------------------------------------------------------------


def store_object(records: Records, settings: Settings) -> Manifest:
    """The ConfigMap that keeps the records: in the operator's namespace, where others do not write."""
    labels = {"app.kubernetes.io/name": OURS, MANAGED_BY: OURS, INSTANCE: MEASURE, COMPONENT: MEASURE}
    data = {uid: record.model_dump_json(exclude_defaults=True) for uid, record in sorted(records.items())}
    metadata = {"name": STORE, "namespace": settings.operator_namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def read_store(config_map: Manifest | None) -> dict[str, Record]:
    """The records; what cannot be read is left out, and measured anew."""
    found = {}
    for uid, text in ((config_map or {}).get("data") or {}).items():
        try:
            found[str(uid)] = Record.model_validate_json(text)
        except ValidationError:
            continue
    return found


def with_figures(node: Manifest, records: Records) -> Manifest:
    """The node as the planner is shown it: with what was measured of it as it is."""
    record = records.get(uid_of(node))
    return {**node, MEASURED: record} if record is not None and is_known(record, node) else node
