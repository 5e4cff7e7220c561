"""The objects made for a resource: names from content, restricted pods, owners, and the right places."""

import copy
import re
from typing import Any

import pytest

from splitinference.controller.manifests.pod_parts import labels_asked
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


# --- names ---------------------------------------------------------------------------------------------------------------------------


def test_a_segment_is_named_by_its_content():
    objects = build()
    assert re.fullmatch(r"chat-12-22-[0-9a-f]{8}", objects.name)
    assert objects.model == "seg-9f8e7d6c-12-22"
    assert objects.pod["metadata"]["name"] == objects.service["metadata"]["name"] == objects.name
    assert build().name == objects.name


@pytest.mark.parametrize(
    "other",
    [
        {"node": "node-b"},
        {"memory": 800 * MIB},
        {"settings": Settings(segment_image="other:1")},
        {"settings": Settings(segment_cpu_limit="2")},
        {"resource": a_resource(segments={"threads": 2})},
        {"resource": a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/m"}}, "dtype": "float32"})},
        {"resource": a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/n"}}})},
    ],
)
def test_other_content_has_another_name(other):
    assert build(**other).name != build().name


@pytest.mark.parametrize(
    "other",
    [
        {"resource": a_resource(placement={"tolerations": [{"key": "edge", "operator": "Exists"}]})},
        {"resource": a_resource(adaptation={"drain": "5s"})},
        {"settings": Settings(image_pull_policy="Never", segment_drain_seconds=5, image_pull_secrets="a")},
    ],
)
def test_what_is_no_content_keeps_the_name_so_nothing_is_loaded_again(other):
    assert build(**other).name == build().name


def test_the_longest_name_is_a_dns_label():
    long = a_resource(name="a" * 40)
    objects = Manifests(Settings()).segment(parsed(long), a_profile(9000), Segment(start=8998, end=8999, node="n"), 1, 1)
    assert len(objects.name) <= 63


# --- segments ------------------------------------------------------------------------------------------------------------------------


def test_memory_request_and_limit_are_the_plans():
    resources = build(memory=700 * MIB).pod["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == str(700 * MIB)
    assert "cpu" not in resources["limits"]


def test_the_segment_is_told_what_the_protocol_names():
    objects = build()
    told = variables(objects.pod["spec"]["containers"][0])
    assert told["SI_SEGMENT"] == objects.name
    assert told["SI_MODEL_NAME"] == objects.model
    assert told["SI_NODE"] == "node-a"
    assert told["SI_LAYERS"] == "12:22"
    assert told["SI_DTYPE"] == "bfloat16"
    assert told["SI_KV_BYTES"] == str(90 * MIB)
    assert told["SI_PEER_PREFIX"] == "chat-"
    assert told["SI_PEER_SUFFIX"] == ".team.svc.cluster.local"
    assert (told["SI_MAX_CONTEXT_TOKENS"], told["SI_MAX_SEQUENCES"]) == ("2048", "16")


def test_a_segment_takes_the_threads_it_is_given_or_as_many_as_its_node_lets_it_have():
    """The planner counts on all of a node's cores; without a limit the kubelet gives the node's allocatable cores for it."""

    def threads(**segments: object) -> list[object]:
        env = build(a_resource(segments=segments)).pod["spec"]["containers"][0]["env"]
        return [entry.get("value", entry.get("valueFrom")) for entry in env if entry["name"] == "SI_THREADS"]

    assert threads(threads=3) == ["3"]
    assert threads() == [{"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1"}}]


def test_weights_are_packed_unless_asked_for_as_stored_which_are_another_segment():
    stored = build(a_resource(segments={"weights": "Stored"}))
    assert variables(stored.pod["spec"]["containers"][0])["SI_WEIGHTS"] == "stored"
    assert variables(build().pod["spec"]["containers"][0])["SI_WEIGHTS"] == "packed"
    assert stored.name != build().name


def test_a_segment_that_sends_hidden_states_is_told_how_to_encode_them_and_no_other_is():
    def told(**more: Any) -> str | None:
        return variables(build(**more).pod["spec"]["containers"][0]).get("SI_LINK_ENCODING")

    int8 = a_resource(segments={"linkEncoding": "Int8"})
    assert told(resource=int8, width=64) == "int8"
    assert told(width=64) is None
    assert told(resource=int8, width=64, layers=(22, 32)) is None  # the last one gives tokens
    assert told(resource=int8) is None  # what it sends is no hidden state


def test_with_auto_a_segment_is_told_what_the_plan_chose_for_its_link():
    auto = a_resource(segments={"linkEncoding": "Auto"})

    def told(encoding: LinkEncoding | None) -> str | None:
        return variables(build(resource=auto, width=64, encoding=encoding).pod["spec"]["containers"][0]).get("SI_LINK_ENCODING")

    assert (told(None), told(LinkEncoding.INT8)) == (None, "int8")
    assert build(resource=auto, width=64, encoding=LinkEncoding.INT8).name != build(resource=auto, width=64).name


def test_another_encoding_makes_another_segment_of_those_that_send_and_keeps_the_last():
    int8 = a_resource(segments={"linkEncoding": "Int8"})
    assert build(resource=int8, width=64).name != build(width=64).name
    assert build(resource=int8, width=64, layers=(22, 32)).name == build(width=64, layers=(22, 32)).name


def test_probes_run_an_inference_and_stopping_drains():
    container = build().pod["spec"]["containers"][0]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    drain = container["lifecycle"]["preStop"]["exec"]["command"]
    assert drain == ["segment-drain", "30"]
    assert build().pod["spec"]["terminationGracePeriodSeconds"] > int(drain[1])


def test_a_segment_goes_to_its_node_through_the_scheduler():
    spec = build(node="node-b").pod["spec"]
    assert "nodeName" not in spec
    terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]}]


def test_the_service_selects_exactly_its_own_segment():
    first, second = build(), build(node="node-b")
    selector = first.service["spec"]["selector"]
    assert selector.items() <= first.pod["metadata"]["labels"].items()
    assert not selector.items() <= second.pod["metadata"]["labels"].items()


def all_pod_specs() -> list[tuple[str, dict[str, Any]]]:
    found = []
    for name, model in (("folder", None), ("hub", HUB), ("claim", CLAIM)):
        resource = a_resource(**({"model": model} if model else {}))
        found.append((f"segment of a {name}", build(resource).pod["spec"]))
        found.append((f"gateway of a {name}", gateway(resource)["Deployment"]["spec"]["template"]["spec"]))
    return found


@pytest.mark.parametrize(("what", "spec"), all_pod_specs(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_container_is_restricted(what, spec):
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["securityContext"]["runAsUser"] > 0
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, what
        assert context["readOnlyRootFilesystem"] is True, what
        assert context["capabilities"] == {"drop": ["ALL"]}, what
        assert "memory" in container["resources"]["limits"], what


def test_objects_are_owned_so_they_go_with_the_resource():
    owners = [obj["metadata"]["ownerReferences"] for obj in (build().pod, build().service, *gateway().values())]
    assert all(owner[0]["uid"] == "u-1" and owner[0]["controller"] for owner in owners)


def test_prometheus_finds_segments_and_gateway():
    assert build().pod["metadata"]["annotations"]["prometheus.io/port"] == "8002"
    assert gateway()["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == "9090"


# --- the model's files ---------------------------------------------------------------------------------------------------------------


def test_a_folder_of_the_node_is_mounted_read_only():
    spec = build().pod["spec"]
    assert {"name": "model", "hostPath": {"path": "/models/m", "type": "Directory"}} in spec["volumes"]
    mount = next(m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model")
    assert mount["readOnly"] is True
    assert mount["mountPath"] == variables(spec["containers"][0])["SI_MODEL_PATH"]


def test_a_claims_folder_is_mounted_read_only():
    spec = build(a_resource(model=CLAIM)).pod["spec"]
    assert {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}} in spec["volumes"]
    assert next(m for m in spec["containers"][0]["volumeMounts"] if m["name"] == "model")["subPath"] == "smol"


def test_a_model_of_the_hub_is_fetched_with_the_secrets_token_and_only_its_layers():
    spec = build(a_resource(model=HUB)).pod["spec"]
    (fetch,) = spec["initContainers"]
    assert fetch["command"][3:] == ["https://huggingface.co", "owner/model", "abc", "/model", "12:22/32"]
    token = next(entry for entry in fetch["env"] if entry["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub", "key": "token"}}
    assert not any("HF_TOKEN" in entry["name"] for entry in spec["containers"][0]["env"])


def test_the_gateway_fetches_no_weights():
    (fetch,) = gateway(a_resource(model=HUB))["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    assert fetch["command"][-1] == "none"


def test_a_cache_on_the_nodes_keeps_models_apart():
    settings = Settings(model_cache_path="/var/cache/models")
    other = copy.deepcopy(HUB)
    other["source"]["huggingFace"]["revision"] = "def"
    paths = {variables(build(a_resource(model=model), settings).pod["spec"]["containers"][0])["SI_MODEL_PATH"] for model in (HUB, other)}
    assert len(paths) == 2
    assert all(path.startswith("/cache/owner--model-") for path in paths)


# --- the gateway ---------------------------------------------------------------------------------------------------------------------


def test_the_gateway_may_watch_its_route_and_nothing_else():
    objects = gateway()
    assert objects["Role"]["rules"] == [
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["chat-route"], "verbs": ["get", "list", "watch"]}
    ]
    assert objects["RoleBinding"]["subjects"][0]["name"] == objects["ServiceAccount"]["metadata"]["name"] == "chat-gateway"


def test_the_gateway_sees_text_so_it_keeps_the_rules_of_first_and_last_layers():
    rules = [{"layers": "first", "nodeLabels": {"trusted": "true"}}, {"layers": "4:8", "nodeLabels": {"other": "x"}}]
    spec = gateway(a_resource(privacy={"rules": rules}, placement={"nodeSelector": {"pool": "edge"}}))["Deployment"]["spec"]["template"][
        "spec"
    ]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    machine = {("kubernetes.io/os", "linux"), ("kubernetes.io/arch", "amd64")}
    assert {(e["key"], e["values"][0]) for e in term["matchExpressions"]} == {("trusted", "true"), ("pool", "edge"), *machine}
    assert labels_asked(spec) == {"trusted": "true", "pool": "edge"}


def test_rules_that_contradict_each_other_leave_no_node_rather_than_one_that_breaks_them():
    rules = [{"layers": "first", "nodeLabels": {"zone": "a"}}, {"layers": "last", "nodeLabels": {"zone": "b"}}]
    spec = gateway(a_resource(privacy={"rules": rules}))["Deployment"]["spec"]["template"]["spec"]
    (term,) = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert sorted(e["values"][0] for e in term["matchExpressions"] if e["key"] == "zone") == ["a", "b"]


def test_a_gateway_leaves_a_lost_node_within_seconds_and_keeps_the_users_tolerations():
    edge = {"key": "edge", "operator": "Exists"}
    spec = gateway(a_resource(placement={"tolerations": [edge]}))["Deployment"]["spec"]["template"]["spec"]
    assert edge in spec["tolerations"]
    lost = {t["key"]: t["tolerationSeconds"] for t in spec["tolerations"] if "tolerationSeconds" in t}
    assert lost == {"node.kubernetes.io/not-ready": 10, "node.kubernetes.io/unreachable": 10}


def test_service_and_endpoint_agree():
    service = gateway()["Service"]
    ports = {port["port"]: port["targetPort"] for port in service["spec"]["ports"]}
    assert ports == {80: "http", 8001: "kserve"}
    (server,) = gateway()["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in server["ports"]} == {
        "http": 8080,
        "kserve": 8001,
        "internal": 8444,
        "metrics": 9090,
    }
    assert (variables(server)["SI_INTERNAL_PORT"], variables(server)["SI_METRICS_PORT"]) == ("8444", "9090")
    assert variables(server)["SI_KSERVE_PORT"] == "8001"
    assert Manifests(Settings()).endpoint(parsed(a_resource())) == "http://chat-gateway.team.svc/v1"


@pytest.mark.parametrize(("given", "told"), [({}, "client"), ({"prefixReuse": "All"}, "all"), ({"prefixReuse": "Off"}, "off")])
def test_the_gateway_is_told_whose_prompts_may_be_used_again(given: dict[str, str], told: str):
    (server,) = gateway(a_resource(gateway=given))["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert variables(server)["SI_PREFIX_REUSE"] == told


@pytest.mark.parametrize(("given", "told"), [({}, "auto"), ({"speculation": "Auto"}, "auto"), ({"speculation": "Off"}, "off")])
def test_the_gateway_is_told_whether_to_draft_tokens(given: dict[str, str], told: str):
    (server,) = gateway(a_resource(gateway=given))["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert variables(server)["SI_SPECULATION"] == told


def test_the_gateway_is_told_how_requests_are_taken():
    names = ("SI_UNKNOWN_FIELDS", "SI_LONG_ANSWERS", "SI_GENERATION_CONFIG", "SI_CORS_ORIGINS")

    def told(given: dict[str, object]) -> list[str]:
        (server,) = gateway(a_resource(gateway=given))["Deployment"]["spec"]["template"]["spec"]["containers"]
        return [variables(server)[name] for name in names]

    assert told({}) == ["warn", "cut", "model", ""]
    given = {
        "unknownFields": "Refuse",
        "longAnswers": "Refuse",
        "generationConfig": "Neutral",
        "corsOrigins": ["https://a.example", "http://b:3000"],
    }
    assert told(given) == ["refuse", "refuse", "neutral", "https://a.example,http://b:3000"]


def test_replicas_share_what_the_segments_are_planned_for():
    assert "topologySpreadConstraints" not in gateway()["Deployment"]["spec"]["template"]["spec"]
    deployment = gateway(a_resource(gateway={"replicas": 2}))["Deployment"]
    told = variables(deployment["spec"]["template"]["spec"]["containers"][0])
    assert (deployment["spec"]["replicas"], told["SI_REPLICAS"]) == (2, "2")
    assert (told["SI_MAX_CONCURRENT_SEQUENCES"], told["SI_MAX_RUNNING_SEQUENCES"]) == ("4", "16")
    segment = variables(build().pod["spec"]["containers"][0])
    assert segment["SI_MAX_SEQUENCES"] == told["SI_MAX_RUNNING_SEQUENCES"]
    (spread,) = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
    assert spread["labelSelector"]["matchLabels"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()


def test_api_keys_come_from_a_secret_that_is_mounted_and_never_read_by_the_operator():
    for ref, items in (({"name": "keys"}, None), ({"name": "keys", "key": "app"}, [{"key": "app", "path": "app"}])):
        spec = gateway(a_resource(gateway={"auth": {"apiKeysSecretRef": ref}}))["Deployment"]["spec"]["template"]["spec"]
        (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "keys"]
        (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == volume["name"]]
        assert (volume["secret"]["secretName"], volume["secret"].get("items")) == ("keys", items)
        assert variables(spec["containers"][0])["SI_API_KEYS_FILE"] == mount["mountPath"]


def test_tokens_are_reviewed_only_where_that_is_asked_for():
    plain = variables(gateway()["Deployment"]["spec"]["template"]["spec"]["containers"][0])
    asked = gateway(a_resource(gateway={"auth": {"tokenReview": {}}}))["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert not {"SI_TOKEN_AUDIENCE", "SI_API_KEYS_FILE"} & plain.keys()
    assert variables(asked)["SI_TOKEN_AUDIENCE"] == "splitinference"


def test_traces_are_sent_where_the_setting_says_and_else_nowhere():
    plain = variables(gateway()["Deployment"]["spec"]["template"]["spec"]["containers"][0])
    assert not [name for name in plain if name.startswith("OTEL_")]
    settings = Settings(otlp_endpoint="http://collector:4318", otlp_sampling_percent=5)
    told = variables(gateway(settings=settings)["Deployment"]["spec"]["template"]["spec"]["containers"][0])
    assert told["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4318"
    assert (told["OTEL_TRACES_SAMPLER"], told["OTEL_TRACES_SAMPLER_ARG"]) == ("parentbased_traceidratio", "0.05")


def test_the_route_is_the_object_that_the_gateway_is_told_to_watch():
    route = Manifests(Settings()).route(parsed(a_resource()), {"route.json": "{}"})
    told = variables(gateway()["Deployment"]["spec"]["template"]["spec"]["containers"][0])
    assert route["metadata"]["name"] == told["SI_ROUTE_CONFIGMAP"]
    assert route["data"] == {"route.json": "{}"}


# --- identity ------------------------------------------------------------------------------------------------------------------------


def mounted(spec: dict[str, Any]) -> dict[str, str]:
    """Secrets by the folder where the main container has them."""
    names = {volume["name"]: volume["secret"]["secretName"] for volume in spec["volumes"] if "secret" in volume}
    return {mount["mountPath"]: names[mount["name"]] for mount in spec["containers"][0]["volumeMounts"] if mount["name"] in names}


@pytest.mark.parametrize("role", ["segment", "gateway"])
def test_pods_mount_the_certificates_of_their_role_and_are_told_who_they_are(role: str):
    spec = build().pod["spec"] if role == "segment" else gateway()["Deployment"]["spec"]["template"]["spec"]
    assert mounted(spec) == {"/var/run/splitinference/tls": f"chat-{role}-tls"}
    told = variables(spec["containers"][0])
    assert (told["SI_TLS_FOLDER"], told["SI_IDENTITY"]) == ("/var/run/splitinference/tls", "spiffe://cluster.local/ns/team/si/chat")
    (mount,) = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "tls"]
    assert mount["readOnly"] is True
    assert "subPath" not in mount, "a file that is mounted alone is never renewed"
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
    assert volume["secret"]["defaultMode"] & 0o004, "the pod's user is neither the file's owner nor in its group"
    assert not any("SI_INSECURE" in told for told in variables(spec["containers"][0]))


def test_no_init_container_sees_a_key():
    for spec in (build(a_resource(model=HUB)).pod["spec"], gateway(a_resource(model=HUB))["Deployment"]["spec"]["template"]["spec"]):
        (fetch,) = spec["initContainers"]
        assert "tls" not in [mount["name"] for mount in fetch.get("volumeMounts", [])]


def test_a_segment_shows_other_pods_the_wire_and_its_metrics_alone():
    objects = build()
    (container,) = objects.pod["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"wire": 8003, "metrics": 8002}
    assert {port["port"] for port in objects.service["spec"]["ports"]} == {8003, 8002}


def test_another_trust_domain_makes_other_segments():
    assert build(settings=Settings(trust_domain="example.org")).name != build().name


# --- network policies ----------------------------------------------------------------------------------------------------------------


def policies(**settings: Any) -> dict[str, dict[str, Any]]:
    objects = Manifests(Settings(**settings)).gateway(parsed(a_resource()), a_profile())
    return {obj["metadata"]["name"]: obj["spec"] for obj in objects if obj["kind"] == "NetworkPolicy"}


def admitted(policy: dict[str, Any], port: int, labels: dict[str, str], namespace: str) -> bool:
    """Whether the policy of an object in the namespace `team` lets this pod connect, by the rules of the API."""

    def matches(selector: dict[str, Any], found: dict[str, str]) -> bool:
        assert set(selector) <= {"matchLabels"}
        return selector.get("matchLabels", {}).items() <= found.items()

    def peer(who: dict[str, Any]) -> bool:
        spaces = who.get("namespaceSelector")
        there = namespace == "team" if spaces is None else matches(spaces, {"kubernetes.io/metadata.name": namespace})
        return there and matches(who.get("podSelector", {}), labels)

    rules = [rule for rule in policy["ingress"] if port in [p["port"] for p in rule["ports"]]]
    return any("from" not in rule or any(peer(who) for who in rule["from"]) for rule in rules)


def pod_labels(component: str, instance: str = "chat") -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "splitinference",
        "app.kubernetes.io/managed-by": "splitinference",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
    }


OPERATOR = {"app.kubernetes.io/name": "splitinference", "app.kubernetes.io/component": "operator"}


@pytest.mark.parametrize(
    ("port", "labels", "namespace", "yes"),
    [
        (8003, pod_labels("gateway"), "team", True),
        (8003, pod_labels("segment"), "team", True),
        (8003, OPERATOR, "splitinference-system", True),
        (8003, pod_labels("gateway", "other"), "team", False),
        (8003, pod_labels("gateway"), "elsewhere", False),
        (8003, OPERATOR, "elsewhere", False),
        (8003, OPERATOR, "team", False),
        (8003, pod_labels("prefetch"), "team", False),
        (8003, {}, "team", False),
        (8003, {}, "monitoring", False),
        (8002, {}, "monitoring", True),
        (8002, {}, "team", False),
        (8000, pod_labels("gateway"), "team", False),
        (8001, pod_labels("gateway"), "team", False),
    ],
)
def test_who_may_reach_a_segment(port: int, labels: dict[str, str], namespace: str, yes: bool):
    policy = policies()["chat-segments"]
    assert policy["podSelector"]["matchLabels"].items() <= build().pod["metadata"]["labels"].items()
    assert policy["policyTypes"] == ["Ingress"]
    assert admitted(policy, port, labels, namespace) is yes


@pytest.mark.parametrize(
    ("port", "labels", "namespace", "yes"),
    [
        (8080, {}, "anywhere", True),
        (8001, {}, "anywhere", True),
        (8444, OPERATOR, "splitinference-system", True),
        (8444, OPERATOR, "team", False),
        (8444, pod_labels("segment"), "team", False),
        (8444, {}, "monitoring", False),
        (9090, {}, "monitoring", True),
        (9090, {}, "team", False),
        (9090, OPERATOR, "splitinference-system", False),
    ],
)
def test_who_may_reach_a_gateway(port: int, labels: dict[str, str], namespace: str, yes: bool):
    policy = policies()["chat-gateway"]
    template = gateway()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= template.items()
    assert admitted(policy, port, labels, namespace) is yes


def test_namespaces_of_operator_and_monitoring_are_settings_and_policies_may_be_left_out():
    moved = policies(operator_namespace="si", monitoring_namespace_selector={"matchLabels": {}})
    assert admitted(moved["chat-segments"], 8003, OPERATOR, "si")
    assert not admitted(moved["chat-segments"], 8003, OPERATOR, "splitinference-system")
    assert admitted(moved["chat-segments"], 8002, {}, "anywhere")
    assert policies(network_policies=False) == {}


def test_segments_log_as_the_operator_does():
    def told(settings: Settings) -> dict[str, str]:
        return variables(build(settings=settings).pod["spec"]["containers"][0])

    assert "SI_LOG_FORMAT" not in told(Settings()), "pods of an earlier version stay as they are"
    assert told(Settings(log_format="json"))["SI_LOG_FORMAT"] == "json"


def test_a_gateway_logs_as_the_operator_does():
    def variables(settings: Settings) -> dict[str, str]:
        (deployment,) = [obj for obj in Manifests(settings).gateway(parsed(a_resource()), a_profile()) if obj["kind"] == "Deployment"]
        return {entry["name"]: entry.get("value", "") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert "SI_LOG_FORMAT" not in variables(Settings()), "pods of an earlier version stay as they are"
    assert variables(Settings(log_format="json"))["SI_LOG_FORMAT"] == "json"
