"""The objects made for a resource: names from content, restricted pods, owners, and the right places."""

import copy
import re
from typing import Any

import pytest

from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.core.values.profile import LinkEncoding
from splitinference.settings import Settings
from tests.controller.manifests.built import (
    CLAIM,
    HUB,
    MIB,
    a_profile,
    a_resource,
    build,
    gateway,
    mounted,
    variables,
)
from tests.controller.objects import parsed

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


def test_a_cache_on_the_nodes_keeps_models_apart():
    settings = Settings(model_cache_path="/var/cache/models")
    other = copy.deepcopy(HUB)
    other["source"]["huggingFace"]["revision"] = "def"
    paths = {variables(build(a_resource(model=model), settings).pod["spec"]["containers"][0])["SI_MODEL_PATH"] for model in (HUB, other)}
    assert len(paths) == 2
    assert all(path.startswith("/cache/owner--model-") for path in paths)


# --- the gateway ---------------------------------------------------------------------------------------------------------------------


# --- identity ------------------------------------------------------------------------------------------------------------------------


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


def test_another_trust_domain_makes_other_segments():
    assert build(settings=Settings(trust_domain="example.org")).name != build().name


# --- network policies ----------------------------------------------------------------------------------------------------------------


def test_segments_log_as_the_operator_does():
    def told(settings: Settings) -> dict[str, str]:
        return variables(build(settings=settings).pod["spec"]["containers"][0])

    assert "SI_LOG_FORMAT" not in told(Settings()), "pods of an earlier version stay as they are"
    assert told(Settings(log_format="json"))["SI_LOG_FORMAT"] == "json"
