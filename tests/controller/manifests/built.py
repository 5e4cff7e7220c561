"""Resources, profiles and the objects that are built of them, for tests of manifests."""

from typing import Any

from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import Layer, LinkEncoding, Profile
from splitinference.settings import Settings
from tests.controller.objects import parsed

MIB = 2**20


def a_resource(name: str = "chat", **spec: Any) -> dict[str, Any]:
    model = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}
    return {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {"name": name, "namespace": "team", "uid": "u-1", "generation": 1},
        "spec": {"model": model, **spec},
    }


def a_profile(layers: int = 32, digest: str = "9f8e7d6c5b4a", width: int | None = None) -> Profile:
    given: dict[str, Any] = {"weight_bytes": 1, "flops_per_token": 1, "boundary_bytes_per_token": 1, "boundary_values_per_token": width}
    found = tuple(Layer(index=i, name=str(i), **given) for i in range(layers))
    return Profile(model="m", digest=digest, dtype="bfloat16", layers=found)


def build(
    resource: dict[str, Any] | None = None,
    settings: Settings | None = None,
    node: str = "node-a",
    memory: int = 700 * MIB,
    *,
    layers: tuple[int, int] = (12, 22),
    width: int | None = None,
    encoding: LinkEncoding | None = None,
) -> Any:
    segment = Segment(start=layers[0], end=layers[1], node=node, link_encoding=encoding)
    return Manifests(settings or Settings()).segment(parsed(resource or a_resource()), a_profile(width=width), segment, memory, 90 * MIB)


def gateway(resource: dict[str, Any] | None = None, settings: Settings | None = None) -> dict[str, Any]:
    objects = Manifests(settings or Settings()).gateway(parsed(resource or a_resource()), a_profile())
    return {obj["kind"]: obj for obj in objects}


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


HUB = {"id": "m", "source": {"huggingFace": {"repository": "owner/model", "revision": "abc", "tokenSecretRef": {"name": "hub"}}}}


CLAIM = {"id": "m", "source": {"persistentVolumeClaim": {"claimName": "models", "path": "smol/"}}}


def mounted(spec: dict[str, Any]) -> dict[str, str]:
    """Secrets by the folder where the main container has them."""
    names = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    return {mount["mountPath"]: names[mount["name"]] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] in names}


def pod_labels(component: str, instance: str = "chat") -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "splitinference",
        "app.kubernetes.io/managed-by": "splitinference",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
    }


OPERATOR = {"app.kubernetes.io/name": "splitinference", "app.kubernetes.io/component": "operator"}
