"""Where a problem comes from: a file, or a resource's spec with a cluster (live or a file) and a model (a folder, a profile, a cache)."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from splitinference.controller.api.sections.model_spec import Model
from splitinference.controller.api.spec import Rejected, Resource, not_served, read_resource
from splitinference.controller.cluster_state.figures.node_benchmark import STORE, Records, read_store, with_figures
from splitinference.controller.cluster_state.figures.node_metrics import Measured, read_metrics
from splitinference.controller.cluster_state.figures.series_owners import Directory
from splitinference.controller.cluster_state.snapshot import Sources, claims, device_claims, read_snapshot
from splitinference.controller.manifests import profile_pod
from splitinference.controller.ports import RefusedError
from splitinference.controller.spec_to_core import plan_constraints, processor_classes
from splitinference.core.decide.feasibility.restrict import without_classes
from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile
from splitinference.settings import Settings
from splitinference_modelfiles.gguf_files.gguf_folder import WhatIsAsked, described, gguf_model, gguf_names
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError

if TYPE_CHECKING:
    from splitinference.adapters.kubernetes.client import KubeCluster

TIMEOUT_SECONDS = 10.0
NO_PROMETHEUS = "utilization is not known: no Prometheus is named (--prometheus URL, or SPLITINFERENCE_PROMETHEUS_URL)"


class UnusableError(Exception):
    """The input cannot be used; the message says where and what was expected."""


MOST_SHOWN = 60
"""Characters of a wrong value that a message repeats."""
MOST_FAULTS = 20
Read = TypeVar("Read", bound=BaseModel)


def problem_from_file(path: Path) -> Problem:
    """A problem from a JSON file. Raises Unusable, and OSError where the file cannot be read."""
    problem = read_as(Problem, path, "a problem")
    unknown = unknown_names(problem)
    if unknown:
        raise UnusableError(f"{path} is not a problem:\n" + "\n".join(f"  {line}" for line in unknown[:MOST_FAULTS]))
    return problem


def read_as(kind: type[Read], path: Path, what: str) -> Read:
    """A value of ours from a JSON file. Raises Unusable with the file, the path inside it and what was expected."""
    data = path.read_bytes()
    content = json_from(data, path)
    try:
        return kind.model_validate_json(data) if isinstance(content, dict) else kind.model_validate(content)
    except ValidationError as error:
        raise UnusableError(f"{path} is not {what}:\n{what_is_wrong(error)}") from error


def json_from(data: bytes, path: Path) -> Any:
    """What the JSON says. Raises Unusable where it is not JSON, or where a key occurs twice in one object."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key, value in found:
            if key in result:
                raise UnusableError(f"{path}: the key {_shown(key)} occurs twice in one object; expected once")
            result[key] = value
        return result

    try:
        return json.loads(data.decode(), object_pairs_hook=pairs)
    except json.JSONDecodeError as error:
        raise UnusableError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise UnusableError(f"{path} is not JSON: byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise UnusableError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:  # a whole number of thousands of digits
        raise UnusableError(f"{path}: {error}") from None


def unknown_names(problem: Problem) -> list[str]:
    """One line for each name in links, in what serves, in measured layer times and in pins that the problem does not have."""
    return [*_unknown_in_links(problem), *_unknown_in_serving(problem), *_unknown_in_layer_times(problem), *_unknown_in_pins(problem)]


def _unknown_in_links(problem: Problem) -> Iterator[str]:
    network = problem.snapshot.network
    places = {*_node_names(problem), network.ingress, ""}
    for number, link in enumerate(network.links):
        for side, given in (("source", link.source), ("target", link.target)):
            if given not in places:
                expected = "a node of the snapshot, or the network's ingress"
                yield f"snapshot.network.links.{number}.{side}: {_shown(given)} is unknown; expected {expected}"
    yield from _unknown_on_the_way(problem.snapshot, places)


def _unknown_in_serving(problem: Problem) -> Iterator[str]:
    names, layers = _node_names(problem), len(problem.profile.layers)
    for number, (start, end, name) in enumerate(problem.serving):
        if name not in names:
            yield f"serving.{number}: node {_shown(name)} is unknown; expected a node of the snapshot"
        if not 0 <= start < end <= layers:
            yield f"serving.{number}: layers [{start}, {end}) are unknown; expected 0 <= start < end <= {layers}"


def _unknown_in_layer_times(problem: Problem) -> Iterator[str]:
    layers = len(problem.profile.layers)
    for number, node in enumerate(problem.snapshot.nodes):
        processors = {processor.name for processor in node.processors} or {""}
        for at, measured in enumerate(node.layer_times):
            where = f"snapshot.nodes.{number}.layer_times.{at}"
            if measured.layer >= layers:
                yield f"{where}.layer: {measured.layer} is unknown; expected at most {layers - 1}"
            if measured.processor not in processors:
                yield f"{where}.processor: {_shown(measured.processor)} is unknown; expected one of {sorted(processors)}"


def _unknown_in_pins(problem: Problem) -> Iterator[str]:
    names = _node_names(problem)
    for number, pin in enumerate(problem.constraints.pins):
        if pin.node not in names:
            yield f"constraints.pins.{number}.node: {_shown(pin.node)} is unknown; expected a node of the snapshot"


def _node_names(problem: Problem) -> frozenset[str]:
    return frozenset(node.name for node in problem.snapshot.nodes)


def _unknown_on_the_way(snapshot: Snapshot, places: set[str]) -> Iterator[str]:
    """Likewise for closed ways and shared links."""
    zones = {node.zone for node in snapshot.nodes}
    for field, known, what in (("closed", places, "a node of the snapshot, or the network's ingress"),
                               ("closed_zones", zones, "a zone of the snapshot's nodes")):  # fmt: skip
        for number, way in enumerate(getattr(snapshot.network, field)):
            for side in ("source", "target"):
                if (given := getattr(way, side)) not in known:
                    yield f"snapshot.network.{field}.{number}.{side}: {_shown(given)} is unknown; expected {what}"
    for number, shared in enumerate(snapshot.network.shared):
        for field, names, known in (("nodes", shared.nodes, places), ("zones", shared.zones, zones)):
            for at, given in enumerate(names):
                if given not in known:
                    yield f"snapshot.network.shared.{number}.{field}.{at}: {_shown(given)} is unknown; expected one of the snapshot"


def _shown(value: object) -> str:
    """A value in a message, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def what_is_wrong(error: ValidationError) -> str:
    """One line for each fault: its path, what is wrong, what was given."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False)[:MOST_FAULTS]:
        where = ".".join(_shown(part) if len(str(part)) > MOST_SHOWN else str(part) for part in fault["loc"]) or "(the whole)"
        given = "" if isinstance(fault["input"], dict | list | tuple) else f" (given: {_shown(fault['input'])})"
        lines.append(f"  {where}: {fault['msg']}{given}" if not isinstance(fault["input"], BaseModel) else f"  {where}: {fault['msg']}")
    if error.error_count() > MOST_FAULTS:
        lines.append(f"  and {error.error_count() - MOST_FAULTS} more")
    return "\n".join(lines)


@dataclass(frozen=True)
class Asked:
    """A problem, and what is to be said of where its figures come from."""

    problem: Problem
    notes: tuple[str, ...] = ()


def problem_from_resource(args: argparse.Namespace) -> Asked:
    """The problem of a SplitInference in a file. Raises Unusable, and what reading files raises."""
    try:
        body = yaml.safe_load(args.filename.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UnusableError(f"{args.filename} is not YAML: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(body, dict) or body.get("kind") != "SplitInference":
        raise UnusableError(f"{args.filename}: kind should be SplitInference")
    return problem_of(body, args)


def problem_of(body: Mapping[str, Any], args: argparse.Namespace) -> Asked:
    """The problem of a SplitInference. Raises Unusable, and what reading files and the cluster raises."""
    metadata = {"namespace": args.namespace or "default", "uid": "", "generation": 1, **(body.get("metadata") or {})}
    resource = read_resource({**body, "metadata": metadata})
    if isinstance(resource, Rejected):
        raise UnusableError(f"{args.filename}: {resource}")
    settings = Settings() if args.prometheus is None else Settings(prometheus_url=args.prometheus)
    profile = _profile(resource, args, settings)
    bounds = plan_constraints.constraints(resource.spec, len(profile.layers), profile.positions, profile.split_points)
    if isinstance(bounds, Rejected):
        raise UnusableError(f"{args.filename}: {bounds}")
    spec = resource.spec
    snapshot, notes = _snapshot(resource, args, settings)
    problem = Problem(
        profile=profile,
        snapshot=without_classes(snapshot.for_dtype(profile.dtype), processor_classes.barred(spec, profile.engine, settings)),
        workload=plan_constraints.workload(spec),
        objective=plan_constraints.objective(spec),
        constraints=bounds,
        slo=plan_constraints.slo(spec),
        link_encoding=plan_constraints.link_encoding(spec),
    )
    return Asked(problem, notes)


def _profile(resource: Resource, args: argparse.Namespace, settings: Settings) -> Profile:
    try:
        if args.profile is not None:
            return read_as(Profile, args.profile, "a profile")
        kept = _read_here(resource.spec.model, args.model) if args.model is not None else _kept(resource, args)
        found = profile_from_model(
            kept.config,
            kept.tensors,
            resource.spec.model.dtype,
            files=kept.files,
            runtime_bytes=settings.segment_runtime_mib * 2**20,
            llama_runtime_bytes=settings.segment_llama_cpp_runtime_mib * 2**20,
            model=resource.spec.model.id,
            weights=resource.spec.model.weights,
        )
    except ModelRefusedError as error:
        raise UnusableError(f"the model cannot be served: {error}") from error
    if (problem := not_served(resource.spec, found)) is not None:
        raise UnusableError(problem)
    return found


def _read_here(model: Model, path: Path) -> profile_pod.Kept:
    """The model in a folder here, or in a GGUF file."""
    is_file = path.suffix == ".gguf"
    folder, wanted = (str(path.parent), path.name) if is_file else (str(path), model.gguf or "")
    if is_file and model.engine == "Torch":
        raise ModelRefusedError(f"{path} needs spec.model.engine Auto or LlamaCpp, or convert it with segment-convert")
    names = gguf_names(folder, wanted)
    if WhatIsAsked(model.digest or "", model.engine, wanted).takes_gguf(names):
        found = gguf_model(folder, names, wanted)
        return profile_pod.Kept(described(found), found.tensors, tuple(names))
    config, (_, tensors) = read_json(folder, CONFIG), tensor_tables(folder)
    return profile_pod.Kept(config, tensors, tuple(file_names(folder)))


def _kept(resource: Resource, args: argparse.Namespace) -> profile_pod.Kept:
    """What the operator has read of this model, from the ConfigMap where it keeps that."""
    from splitinference.adapters.kubernetes.client import KubeCluster, connect

    cluster = KubeCluster(connect(args.kubeconfig, getattr(args, "context", None)), TIMEOUT_SECONDS, (resource.namespace,))
    kept = cluster.get("ConfigMap", resource.namespace, profile_pod.cache_name(resource))
    packed = profile_pod.cached(resource, kept) if kept else None
    unpacked = profile_pod.unpack(packed) if packed else None
    if unpacked is None:
        raise UnusableError(
            "the operator has not read this model; give its folder or GGUF file with --model, or its profile with --profile"
        )
    return unpacked


def _snapshot(resource: Resource, args: argparse.Namespace, settings: Settings) -> tuple[Snapshot, tuple[str, ...]]:
    if args.cluster is not None:
        return snapshot_from_file(args.cluster, resource, settings)
    from splitinference.adapters.kubernetes.client import KubeCluster, connect

    cluster = KubeCluster(connect(args.kubeconfig, getattr(args, "context", None)), TIMEOUT_SECONDS)
    pods = cluster.pods()
    records = _measured(cluster, settings)
    nodes = [with_figures(node, records) for node in cluster.nodes()]
    return _read(nodes, pods, cluster.split_inferences(), resource, settings)


def _measured(cluster: "KubeCluster", settings: Settings) -> Records:
    """What the operator has measured of nodes; nothing where one may not read it."""
    try:
        return read_store(cluster.get("ConfigMap", settings.operator_namespace, STORE))
    except RefusedError:
        return {}


def snapshot_from_file(path: Path, resource: Resource, settings: Settings) -> tuple[Snapshot, tuple[str, ...]]:
    """A snapshot as this project writes it, or a list of nodes and pods as kubectl prints it; and notes on it."""
    content = json_from(path.read_bytes(), path)
    if isinstance(content, dict) and content.get("kind", "").endswith("List"):
        items = content.get("items") or []
        nodes = [i for i in items if i.get("kind") == "Node"]
        pods = [i for i in items if i.get("kind") == "Pod"]
        return _read(nodes, pods, (), resource, settings)
    try:
        return Snapshot.model_validate(content), ()
    except ValidationError as error:
        raise UnusableError(f"{path} is neither a snapshot nor a list of nodes and pods:\n{what_is_wrong(error)}") from error


def _read(nodes: Any, pods: Any, others: Sequence[Any], resource: Resource, settings: Settings) -> tuple[Snapshot, tuple[str, ...]]:
    """The operator's own reading of nodes, pods and Prometheus, and what was odd about it."""
    measured, notes = Measured(), [NO_PROMETHEUS]
    if settings.prometheus_url:
        from splitinference.adapters.promql.prometheus import PrometheusMetrics

        measured = read_metrics(PrometheusMetrics(settings), Directory(nodes, pods, settings.operator_namespace), settings)
        notes = [f"utilization is not known: {measured.problem}"] if measured.problem else []
    owner = (resource.namespace, resource.name)
    sources = Sources(
        now=datetime.now(tz=UTC),
        nodes=nodes,
        pods=pods,
        measured=measured,
        held=claims(others, pods, *owner),
        owner=owner,
        held_devices=device_claims(others, pods, *owner),
    )
    reading = read_snapshot(sources, settings)
    return reading.snapshot, (*notes, *reading.notes)
