"""The objects of one SplitInference, built purely: segments, and the gateway with its route (in controller/manifests/gateway.py).

A segment's name covers all that makes its content, so equal names are equal segments: making one twice is harmless, and a segment that the
next plan keeps is not touched. Tolerations, probes and pull settings are not content: to change them is no reason to load a model again.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from splitinference.controller.api.adapter_spec import AdapterSpec
from splitinference.controller.api.pod_values import PodTemplates
from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import TLS_MOUNT, Role, tls_environment, tls_volume
from splitinference.controller.manifests import gateway, network_policies
from splitinference.controller.manifests.adapter_loader import loader_pod
from splitinference.controller.manifests.model_volume import model_files
from splitinference.controller.manifests.pod_parts import (
    COMPONENT,
    DEVICE,
    LAYERS_LABEL,
    MODEL_LABEL,
    ObjectBody,
    container,
    environment,
    labels,
    metadata,
    on_node,
    pod_spec,
    scraped,
)
from splitinference.controller.manifests.pod_template import PodKind, content_of, finish, template_of
from splitinference.controller.manifests.profile_pod import KEY, cache_name
from splitinference.controller.manifests.segment_resources import device_needs, resources_of
from splitinference.controller.names import PREFETCH
from splitinference.controller.ports import SegmentObjects
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.cost.stage import adapter_bytes
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import Engine, LinkEncoding, Profile
from splitinference.settings import Settings
from splitinference_protocol.wire.request import Hop

SEGMENT = network_policies.SEGMENT
VERIFIER = network_policies.VERIFIER
VERIFIER_INFIX = "-v-"
"""Two characters more than a segment's name has, so that one of a resource with 40 still is a DNS label."""
METRICS_PORT = network_policies.SEGMENT_METRICS_PORT
WIRE_PORT = network_policies.WIRE_PORT


class Manifests:
    """The Builder of the ports."""

    def __init__(self, settings: Settings) -> None:
        PodTemplates.model_validate(settings.pod_template)  # what makes no sense ends the operator at its start, not each pass
        self._settings = settings

    def segment(self, resource: Resource, profile: Profile, segment: Segment, memory_bytes: int, kv_bytes: int) -> SegmentObjects:
        """Pod and Service of one segment."""
        device = device_needs(profile.engine, segment.processor, memory_bytes, self._settings)
        ruled = plan_constraints.runtime_class(resource.spec, len(profile.layers), segment.start, segment.end)
        runtime_class = ruled or (device.runtime_class if device is not None else None)
        template = content_of(template_of(resource, self._settings, PodKind.SEGMENTS, runtime_class))
        model = f"seg-{profile.digest[:8]}-{segment.start}-{segment.end}"
        run = f"{segment.start}:{segment.end}/{len(profile.layers)}"
        image = device.image if device is not None else segment_image(profile.engine, self._settings)
        files = model_files(resource, self._settings, image, run, profile.commit, gguf=profile.files)
        variables = self._variables(resource, segment, model, files.path, kv_bytes) | _link_encoding(resource, profile, segment)
        variables |= _engine(profile) | _adapters(resource, profile, segment) | (dict(device.variables) if device is not None else {})
        digests, digests_mount = _digests(resource, profile)
        variables |= {"SI_MODEL_DIGEST": profile.content, "SI_DIGESTS_FILE": f"{_DIGESTS_FOLDER}/{KEY}"} if digests else {}
        locked, key_mounts, key_volumes = _encryption(resource)
        variables |= locked
        name = segment_name(
            resource.name,
            segment,
            {
                "model": profile.digest,
                "source": resource.spec.model.source.model_dump(mode="json"),
                "node": segment.node,
                "processor": segment.processor,
                "image": image,
                "memory": memory_bytes,
                "cpu": [self._settings.segment_cpu_request, self._settings.segment_cpu_limit],
                **({"host memory": device.host_bytes} if device is not None else {}),
                "settings": variables,
                **({"template": template} if template else {}),
            },
        )
        extra = {MODEL_LABEL: profile.digest[:8], LAYERS_LABEL: f"{segment.start}-{segment.end}"}
        placed = {DEVICE: segment.processor} if device is not None else {}
        pod_metadata = metadata(resource, name, SEGMENT, extra) | {"annotations": scraped(METRICS_PORT) | placed}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": pod_metadata,
            "spec": pod_spec(
                resource,
                self._settings,
                [
                    self._container(
                        image,
                        {"SI_SEGMENT": name, "SI_NODE": segment.node, **variables},
                        [files.mount, *digests_mount, *key_mounts],
                        resources_of(memory_bytes, device, self._settings),
                    )
                ],
                initContainers=list(files.init),
                restartPolicy="Always",
                terminationGracePeriodSeconds=self._settings.segment_drain_seconds + 15,
                affinity=on_node(segment.node),
                volumes=[
                    files.volume,
                    {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{self._settings.segment_shm_mib}Mi"}},
                    {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
                    tls_volume(resource.name, Role.SEGMENT),
                    *digests,
                    *key_volumes,
                ],
            ),
        }
        finish(pod, resource, self._settings, PodKind.SEGMENTS, runtime_class)
        held = device.host_bytes if device is not None else memory_bytes
        selector = {**labels(resource.name, SEGMENT), "splitinference.dev/segment": name}
        pod_metadata["labels"]["splitinference.dev/segment"] = name
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(resource, name, SEGMENT, extra),
            "spec": {
                "type": "ClusterIP",
                "ipFamilyPolicy": "PreferDualStack",
                "selector": selector,
                # Which segments serve is the route's matter: a late probe on a busy node must not cut a chain that works.
                "publishNotReadyAddresses": True,
                "ports": [_port("wire", WIRE_PORT), _port("metrics", METRICS_PORT)],
            },
        }
        return SegmentObjects(name=name, model=model, memory_bytes=held, pod=pod, service=service)

    def verifier(self, resource: Resource, profile: Profile, segment: Segment, memory_bytes: int, kv_bytes: int) -> SegmentObjects:
        """The same pod and Service under another name and component: peers of the resource, and no part of a plan."""
        made = self.segment(resource, profile, segment, memory_bytes, kv_bytes)
        name = f"{resource.name}{VERIFIER_INFIX}{made.name.removeprefix(f'{resource.name}-')}"
        text = json.dumps({"pod": made.pod, "service": made.service}).replace(json.dumps(made.name), json.dumps(name))
        objects = json.loads(text)
        for thing in objects.values():
            thing["metadata"]["labels"][COMPONENT] = VERIFIER
        objects["service"]["spec"]["selector"][COMPONENT] = VERIFIER
        return made.model_copy(update={"name": name, **objects})

    def prefetch(self, resource: Resource, profile: Profile, segment: Segment) -> ObjectBody | None:
        """A pod that runs what a segment's init container would, on the segment's node; None for models that are on nodes or volumes."""
        image, settings = segment_image(profile.engine, self._settings), self._settings
        run = f"{segment.start}:{segment.end}/{len(profile.layers)}"
        files = model_files(resource, settings, image, run, profile.commit, gguf=profile.files)
        if not files.init or not settings.model_cache_path:
            return None
        source = resource.spec.model.source.model_dump(mode="json")
        content = {"model": profile.digest, "source": source, "node": segment.node, "image": image}
        name = segment_name(f"{resource.name}-{PREFETCH}", segment, content)
        extra = {MODEL_LABEL: profile.digest[:8], LAYERS_LABEL: f"{segment.start}-{segment.end}"}
        spec = pod_spec(resource, settings, list(files.init), restartPolicy="Never", affinity=on_node(segment.node), volumes=[files.volume])
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata(resource, name, PREFETCH, extra), "spec": spec}
        return finish(pod, resource, settings, PodKind.JOBS)

    def adapter_loader(
        self,
        resource: Resource,
        adapter: AdapterSpec,
        source: str,
        *,
        targets: Sequence[Hop],
        nodes: Collection[str],
        blocks: int,
        again: int,
    ) -> ObjectBody:
        """A pod that gives an adapter to these segments and ends."""
        return loader_pod(resource, adapter, source, self._settings, targets=targets, nodes=nodes, blocks=blocks, again=again)

    def gateway(self, resource: Resource, profile: Profile) -> Sequence[ObjectBody]:
        """All objects of the gateway, in the order in which they are to be applied."""
        return gateway.gateway_objects(resource, self._settings, len(profile.layers), profile.commit, profile.files)

    def route(self, resource: Resource, data: Mapping[str, str]) -> ObjectBody:
        """The ConfigMap that the gateway watches."""
        return gateway.route_object(resource, data)

    def endpoint(self, resource: Resource) -> str:
        """URL of the OpenAI API inside the cluster."""
        return gateway.endpoint(resource)

    def _variables(self, resource: Resource, segment: Segment, model: str, path: str, kv_bytes: int) -> dict[str, str]:
        spec = resource.spec
        return {
            "SI_MODEL_NAME": model,
            "SI_MODEL_PATH": path,
            "SI_LAYERS": f"{segment.start}:{segment.end}",
            "SI_DTYPE": spec.model.dtype,
            "SI_MAX_CONTEXT_TOKENS": str(spec.model.max_context_tokens),
            "SI_MAX_SEQUENCES": str(spec.model.max_running_sequences),
            "SI_KV_BYTES": str(kv_bytes),
            "SI_PEER_PREFIX": f"{resource.name}-",
            "SI_PEER_SUFFIX": gateway.peer_suffix(resource, self._settings),
            **tls_environment(self._settings.trust_domain, resource.namespace, resource.name),
            "HOME": "/tmp",
            "USER": "splitinference",
            **({"SI_THREADS": str(spec.segments.threads)} if spec.segments.threads else {}),
            "SI_WEIGHTS": spec.segments.weights.lower(),
            # Nothing for weights as they are stored, so that segments of before keep their names.
            **({"SI_MODEL_WEIGHTS": spec.model.weights} if spec.model.weights != "AsStored" else {}),
            **({"SI_LOG_FORMAT": "json"} if self._settings.log_format == "json" else {}),
        }

    def _container(self, image: str, variables: Mapping[str, str], model_mounts: Sequence[ObjectBody], resources: ObjectBody) -> ObjectBody:
        settings = self._settings
        return container(
            SEGMENT,
            image,
            settings,
            env=[*environment(variables), *([] if "SI_THREADS" in variables else [_ALL_CORES])],
            ports=[
                {"name": "wire", "containerPort": WIRE_PORT},
                {"name": "metrics", "containerPort": METRICS_PORT},
            ],
            resources=resources,
            # Every probe runs a token through the segment: Triton says "ready" even when what computes is dead. On half a core that is
            # slow, hence the time limits; and a segment is started anew only after a minute of failures, as that costs a load of the model.
            startupProbe=_probe(period=2, timeout=10, failures=max(1, settings.segment_start_seconds // 2)),
            readinessProbe=_probe(period=3, timeout=10, failures=2),
            livenessProbe=_probe(period=10, timeout=20, failures=6),
            lifecycle={"preStop": {"exec": {"command": ["segment-drain", str(settings.segment_drain_seconds)]}}},
            volumeMounts=[*model_mounts, {"name": "shm", "mountPath": "/dev/shm"}, {"name": "tmp", "mountPath": "/tmp"}, TLS_MOUNT],
        )


_ALL_CORES = {"name": "SI_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}}
"""As many threads as the container may use: its CPU limit; where it has none, the kubelet says the node's allocatable cores instead."""


def segment_image(engine: Engine, settings: Settings) -> str:
    """The image that has this engine."""
    return settings.segment_llama_cpp_image if engine is Engine.LLAMA_CPP else settings.segment_image


def _engine(profile: Profile) -> dict[str, str]:
    """Nothing for torch, so that its segments keep their names."""
    return {} if profile.engine is Engine.TORCH else {"SI_ENGINE": profile.engine.value}


_ADAPTER_HEADERS = 1 << 20
"""Adapters arrive with the names of their tensors, which are not kept."""


def _adapters(resource: Resource, profile: Profile, segment: Segment) -> dict[str, str]:
    """Memory for adapters, whichever they are: so they come and go, and the segment stays."""
    whole = resource.spec.segments.adapter_memory_mib << 20
    return {"SI_ADAPTER_BYTES": str(adapter_bytes(profile, whole, segment.start, segment.end) + _ADAPTER_HEADERS)} if whole else {}


def segment_name(instance: str, segment: Segment, content: Mapping[str, Any]) -> str:
    """`<si>-<start>-<end>-<hash8>` where the hash covers `content`; at most 61 characters for a name of 40."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    return f"{instance}-{segment.start}-{segment.end}-{digest}"


_DIGESTS_FOLDER = "/digests"


def _digests(resource: Resource, profile: Profile) -> tuple[list[ObjectBody], list[ObjectBody]]:
    """Volume and mount of the list by which a segment checks its tensors; none where the model's digest is not known. Whoever may write the
    ConfigMap cannot deceive a segment: the list must have the root that stands in the pod's own environment."""
    if not profile.content or resource.spec.model.encryption is not None:  # what is listed is what is stored, and not what is decrypted
        return [], []
    items = [{"key": KEY, "path": KEY}]
    volume = {"name": "digests", "configMap": {"name": cache_name(resource), "items": items}}
    return [volume], [{"name": "digests", "mountPath": _DIGESTS_FOLDER, "readOnly": True}]


_CA_FOLDER = "/key-broker"


def _encryption(resource: Resource) -> tuple[dict[str, str], list[ObjectBody], list[ObjectBody]]:
    """Variables, mounts and volumes by which a segment gets the key of its encrypted weights. The key itself is in no object."""
    if (encryption := resource.spec.model.encryption) is None:
        return {}, [], []
    broker = encryption.key_broker
    variables = {"SI_KEY_BROKER_URL": broker.url, "SI_KEY_RESOURCE": broker.resource}
    if (authority := broker.ca_config_map_ref) is None:
        return variables, [], []
    items = [{"key": authority.key, "path": "ca.crt"}]
    volume = {"name": "key-broker", "configMap": {"name": authority.name, "items": items}}
    mount = {"name": "key-broker", "mountPath": _CA_FOLDER, "readOnly": True}
    return variables | {"SI_KEY_BROKER_CA": f"{_CA_FOLDER}/ca.crt"}, [mount], [volume]


def _link_encoding(resource: Resource, profile: Profile, segment: Segment) -> dict[str, str]:
    """Only what a segment sends is encoded, so one that sends no hidden state is the same segment either way."""
    sends = segment.end < len(profile.layers) and profile.layers[segment.end - 1].boundary_values_per_token is not None
    encoding = segment.link_encoding or plan_constraints.link_encoding(resource.spec)
    return {"SI_LINK_ENCODING": encoding.value} if sends and encoding is LinkEncoding.INT8 else {}


def _probe(period: int, timeout: int, failures: int) -> ObjectBody:
    asked = {"httpGet": {"path": "/healthz", "port": "metrics"}}
    return {**asked, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}


def _port(name: str, number: int) -> ObjectBody:
    return {"name": name, "port": number, "targetPort": name}
