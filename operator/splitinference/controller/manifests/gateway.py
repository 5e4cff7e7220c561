"""The gateway's objects: Deployment, Service, its own ServiceAccount that may watch one route, and the route itself."""

from collections.abc import Mapping, Sequence

from splitinference.controller.api.spec import Resource
from splitinference.controller.identity import TLS_MOUNT, Role, tls_environment, tls_volume
from splitinference.controller.manifests import network_policies
from splitinference.controller.manifests.disruption_budget import gateway_budget
from splitinference.controller.manifests.model_volume import NO_WEIGHTS, model_files, tokenizer_files
from splitinference.controller.manifests.pod_parts import (
    ObjectBody,
    container,
    environment,
    labels,
    metadata,
    on_nodes_with,
    pod_spec,
    scraped,
)
from splitinference.controller.manifests.pod_template import PodKind, finish
from splitinference.controller.manifests.reuse import reuse_parts
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.settings import Settings

GATEWAY = network_policies.GATEWAY
ROUTE = "route"
PORT = network_policies.CLIENT_PORT
KSERVE_PORT = network_policies.KSERVE_PORT
INTERNAL_PORT = network_policies.INTERNAL_PORT
METRICS_PORT = network_policies.GATEWAY_METRICS_PORT
KEYS_FOLDER = "/keys"

# A gateway on a node that is lost is made anew elsewhere after seconds, not after Kubernetes' five minutes.
_LEAVE_LOST_NODES: Sequence[ObjectBody] = tuple(
    {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10}
    for state in ("not-ready", "unreachable")
)


def gateway_name(instance: str) -> str:
    """Name of all objects of the gateway."""
    return f"{instance}-gateway"


def route_name(instance: str) -> str:
    """Name of the route's ConfigMap."""
    return f"{instance}-route"


def endpoint(resource: Resource) -> str:
    """URL of the OpenAI API inside the cluster."""
    return f"http://{gateway_name(resource.name)}.{resource.namespace}.svc/v1"


def peer_suffix(resource: Resource, settings: Settings) -> str:
    """What is appended to a segment's name to have its host name."""
    return f".{resource.namespace}.svc.{settings.cluster_domain}"


def route_object(resource: Resource, data: Mapping[str, str]) -> ObjectBody:
    """The ConfigMap that the gateway watches; one write of it is the cutover."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(resource, route_name(resource.name), ROUTE), "data": dict(data)}


def gateway_objects(
    resource: Resource, settings: Settings, layers: int, commit: str = "", gguf: Sequence[str] = ()
) -> Sequence[ObjectBody]:
    """All of them, what is needed first. `layers`: how many the model has, for the privacy rules that cover text; `commit` of a hub;
    `gguf`: the files of a GGUF model."""
    name = gateway_name(resource.name)
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": metadata(resource, name, GATEWAY),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [route_name(resource.name)],
                "verbs": ["get", "list", "watch"],
            }
        ],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": metadata(resource, name, GATEWAY),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": resource.namespace}],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(resource, name, GATEWAY)}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(resource, name, GATEWAY),
        "spec": {
            "type": "ClusterIP",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": labels(resource.name, GATEWAY),
            "ports": [
                {"name": "http", "port": 80, "targetPort": "http"},
                {"name": "kserve", "port": KSERVE_PORT, "targetPort": "kserve"},
            ],
        },
    }
    policies = network_policies.policies_of(resource, settings) if settings.network_policies else []
    budgets = [gateway_budget(resource, name, labels(resource.name, GATEWAY))] if settings.disruption_budgets else []
    return [account, role, binding, *policies, *budgets, service, _deployment(resource, settings, layers, commit, gguf)]


def _deployment(resource: Resource, settings: Settings, layers: int, commit: str, gguf: Sequence[str]) -> ObjectBody:
    name = gateway_name(resource.name)
    image = settings.gateway_image
    files = tokenizer_files(resource, settings, image, commit, gguf) if gguf else model_files(resource, settings, image, NO_WEIGHTS, commit)
    reuse = reuse_parts(resource, commit)
    variables = {
        "SI_NAME": resource.name,
        "SI_NAMESPACE": resource.namespace,
        "SI_ROUTE_CONFIGMAP": route_name(resource.name),
        "SI_MODEL_ID": resource.spec.model.id,
        "SI_MODEL_PATH": files.path,
        "SI_MAX_CONTEXT_TOKENS": str(resource.spec.model.max_context_tokens),
        "SI_MAX_CONCURRENT_SEQUENCES": str(resource.spec.model.max_concurrent_sequences),
        "SI_MAX_RUNNING_SEQUENCES": str(resource.spec.model.max_running_sequences),
        "SI_REPLICAS": str(resource.spec.gateway.replicas),
        "SI_PREFIX_REUSE": resource.spec.gateway.prefix_reuse.lower(),
        "SI_SPECULATION": resource.spec.gateway.speculation.lower(),
        "SI_UNKNOWN_FIELDS": resource.spec.gateway.unknown_fields.lower(),
        "SI_LONG_ANSWERS": resource.spec.gateway.long_answers.lower(),
        "SI_GENERATION_CONFIG": resource.spec.gateway.generation_config.lower(),
        "SI_CORS_ORIGINS": ",".join(resource.spec.gateway.cors_origins),
        "SI_PEER_SUFFIX": peer_suffix(resource, settings),
        "SI_PORT": str(PORT),
        "SI_KSERVE_PORT": str(KSERVE_PORT),
        "SI_INTERNAL_PORT": str(INTERNAL_PORT),
        "SI_METRICS_PORT": str(METRICS_PORT),
        **reuse.variables,
        **_filter(resource),
        **tls_environment(settings.trust_domain, resource.namespace, resource.name),
        **({"SI_LOG_FORMAT": "json"} if settings.log_format == "json" else {}),
        "HOME": "/tmp",
    }
    if settings.otlp_endpoint:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = settings.otlp_endpoint
        variables["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
        variables["OTEL_TRACES_SAMPLER_ARG"] = f"{settings.otlp_sampling_percent / 100:g}"
    volumes = [
        files.volume,
        *files.more_volumes,
        {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        tls_volume(resource.name, Role.GATEWAY),
        *reuse.volumes,
    ]
    mounts = [files.mount, {"name": "tmp", "mountPath": "/tmp"}, TLS_MOUNT, *reuse.mounts]
    auth = resource.spec.gateway.auth
    if auth.token_review:
        variables["SI_TOKEN_AUDIENCE"] = auth.token_review.audience
    if secret := auth.api_keys_secret_ref:
        variables["SI_API_KEYS_FILE"] = KEYS_FOLDER
        items = {"items": [{"key": secret.key, "path": secret.key}]} if secret.key else {}
        volumes.append({"name": "keys", "secret": {"secretName": secret.name, **items}})
        mounts.append({"name": "keys", "mountPath": KEYS_FOLDER, "readOnly": True})
    memory = reuse.memory(settings.gateway_memory)
    server = container(
        GATEWAY,
        settings.gateway_image,
        settings,
        env=environment(variables),
        ports=[
            {"name": "http", "containerPort": PORT},
            {"name": "kserve", "containerPort": KSERVE_PORT},
            {"name": "internal", "containerPort": INTERNAL_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT},
        ],
        resources={
            "requests": {"cpu": settings.gateway_cpu_request, "memory": memory},
            "limits": {"memory": memory},
        },
        startupProbe=_http_probe("/healthz", period=1, timeout=3, failures=120),
        readinessProbe=_http_probe("/readyz", period=2, timeout=3, failures=2),
        livenessProbe=_http_probe("/healthz", period=10, timeout=5, failures=6),
        volumeMounts=mounts,
    )
    spec = pod_spec(
        resource,
        settings,
        [server],
        initContainers=list(files.init),
        serviceAccountName=name,
        # Streams that are under way when it is told to stop may end.
        terminationGracePeriodSeconds=75,
        volumes=volumes,
    )
    spec["automountServiceAccountToken"] = True
    spec["tolerations"] = [*spec.get("tolerations", []), *_LEAVE_LOST_NODES]
    asked = [resource.spec.placement.node_selector, *plan_constraints.text_labels(resource.spec, layers)]
    spec["affinity"] = on_nodes_with(asked, settings.architectures)
    if resource.spec.gateway.replicas > 1:
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        spec["topologySpreadConstraints"] = [spread | {"labelSelector": {"matchLabels": labels(resource.name, GATEWAY)}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(resource, name, GATEWAY),
        "spec": {
            "replicas": resource.spec.gateway.replicas,
            "revisionHistoryLimit": 1,
            # Of several one may give way: on full nodes a further pod would wait for ever. For a single one plans leave room.
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": int(resource.spec.gateway.replicas > 1)},
            },
            "selector": {"matchLabels": labels(resource.name, GATEWAY)},
            "template": finish(
                {"metadata": {"labels": labels(resource.name, GATEWAY), "annotations": scraped(METRICS_PORT)}, "spec": spec},
                resource,
                settings,
                PodKind.GATEWAY,
                plan_constraints.text_runtime_class(resource.spec, layers),
            ),
        },
    }


def _filter(resource: Resource) -> dict[str, str]:
    asked = resource.spec.filter
    if asked is None:
        return {}
    shares = {"SI_FILTER_SAMPLE": asked.sample_percent, "SI_FILTER_FLOOR": asked.agreement_percent}
    told = {"SI_FILTER_FILE": asked.file, "SI_FILTER_MODE": asked.mode.lower(), "SI_FILTER_AFTER_LAYERS": str(asked.after_layers)}
    if asked.mode == "Reuse":
        told |= {"SI_FILTER_SCOPE": asked.scope.value.lower(), "SI_FILTER_SECONDS": f"{asked.ttl.total_seconds():g}"}
    return told | {name: f"{percent / 100:g}" for name, percent in shares.items()}


def _http_probe(path: str, period: int, timeout: int, failures: int) -> ObjectBody:
    return {"httpGet": {"path": path, "port": "http"}, "periodSeconds": period, "timeoutSeconds": timeout, "failureThreshold": failures}
