"""The gateway of a resource: where it runs, what it is told, and what it may."""

import pytest

from splitinference.controller.manifests.pod_parts import labels_asked
from splitinference.controller.manifests.segment import Manifests
from splitinference.settings import Settings
from tests.controller.manifests.built import HUB, a_profile, a_resource, build, gateway, variables
from tests.controller.objects import parsed


def test_the_gateway_fetches_no_weights():
    (fetch,) = gateway(a_resource(model=HUB))["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    assert fetch["command"][-1] == "none"


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


def test_a_gateway_logs_as_the_operator_does():
    def variables(settings: Settings) -> dict[str, str]:
        (deployment,) = [obj for obj in Manifests(settings).gateway(parsed(a_resource()), a_profile()) if obj["kind"] == "Deployment"]
        return {entry["name"]: entry.get("value", "") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}

    assert "SI_LOG_FORMAT" not in variables(Settings()), "pods of an earlier version stay as they are"
    assert variables(Settings(log_format="json"))["SI_LOG_FORMAT"] == "json"
