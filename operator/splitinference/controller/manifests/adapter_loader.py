"""The pod that reads an adapter and gives each segment the part for its layers, while the segments serve.

It runs in the segment image, for minutes at most, with a certificate of its own role: it may load adapters, and ask for nothing else.
"""

import hashlib
import json
from collections.abc import Collection, Sequence

from splitinference.controller.api.adapter_spec import AdapterSpec
from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import TLS_MOUNT, Role, tls_environment, tls_volume
from splitinference.controller.manifests import gateway, network_policies
from splitinference.controller.manifests.model_volume import ADAPTER, model_files
from splitinference.controller.manifests.pod_parts import ObjectBody, container, environment, metadata, on_nodes_with, on_one_of, pod_spec
from splitinference.controller.manifests.pod_template import PodKind, finish
from splitinference.settings import Settings
from splitinference_protocol.wire.request import Hop

LOADER = network_policies.LOADER
ADAPTER_LABEL = "splitinference.dev/adapter"
"""Hash of an adapter's source."""
_SECONDS = 600


def loader_pod(
    resource: Resource,
    adapter: AdapterSpec,
    source: str,
    settings: Settings,
    *,
    targets: Sequence[Hop],
    nodes: Collection[str],
    blocks: int,
    again: int,
) -> ObjectBody:
    """Give the adapter to these segments. `source`: hash of its source; `nodes`: where a folder of nodes may be read; `blocks`: how many
    the model has; `again`: how often it was tried before, which is part of the name."""
    model = resource.spec.model.model_copy(update={"source": adapter.source, "file": None})
    reading = resource.model_copy(update={"spec": resource.spec.model_copy(update={"model": model})})
    files = model_files(reading, settings, settings.segment_image, ADAPTER)
    told = json.dumps([hop.as_json for hop in targets])
    variables = {
        "SI_ADAPTER_PATH": files.path,
        "SI_ADAPTER_BLOCKS": str(blocks),
        "SI_ADAPTER_TARGETS": told,
        "SI_PEER_PREFIX": f"{resource.name}-",
        "SI_PEER_SUFFIX": gateway.peer_suffix(resource, settings),
        **tls_environment(settings.trust_domain, resource.namespace, resource.name),
        "HOME": "/tmp",
    }
    load = container(
        LOADER,
        settings.segment_image,
        settings,
        command=["segment-load-adapter"],
        env=environment(variables),
        resources={"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "2Gi"}},
        volumeMounts=[files.mount, {"name": "tmp", "mountPath": "/tmp"}, TLS_MOUNT],
    )
    spec = pod_spec(
        resource,
        settings,
        [load],
        initContainers=list(files.init),
        restartPolicy="Never",
        activeDeadlineSeconds=_SECONDS,
        terminationGracePeriodSeconds=1,
        volumes=[files.volume, {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}, tls_volume(resource.name, Role.LOADER)],
    )
    spec["affinity"] = (
        on_nodes_with([resource.spec.placement.node_selector], settings.architectures)
        if adapter.source.persistent_volume_claim is not None
        else on_one_of(nodes)
    )
    content = json.dumps([source, adapter.name, told, settings.segment_image, again])
    name = f"{resource.name}-adapter-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    about = metadata(resource, name, LOADER, {ADAPTER_LABEL: source})
    return finish({"apiVersion": "v1", "kind": "Pod", "metadata": about, "spec": spec}, resource, settings, PodKind.JOBS)
