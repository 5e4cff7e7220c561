"""The chart's values: what they become, and what is refused."""

import json
import re

import pytest
import yaml

from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.chart.rendered import CHART, PREFIX, container, environment, only, render, run, settings, umbrella, values
from tests.controller.manifests.built import a_profile, a_resource
from tests.controller.objects import parsed


def test_every_setting_that_the_chart_gives_is_one_of_the_operators():
    given = settings("extraSettings.SOLVE_SECONDS=9")
    assert {name.removeprefix(PREFIX).lower() for name in given} <= set(Settings.model_fields)
    assert given["SPLITINFERENCE_SOLVE_SECONDS"] == "9"


def test_the_defaults_of_the_chart_are_the_operators(monkeypatch: pytest.MonkeyPatch):
    for name, value in settings().items():
        monkeypatch.setenv(name, value)
    chart, own = Settings().model_dump(), Settings.model_construct().model_dump()
    assert chart.pop("lease") == "ops/si-splitinference-operator"
    assert own.pop("lease") == "", "outside of a cluster there is no election"
    assert chart.pop("operator_namespace") == "ops", "the release's"
    assert chart.pop("measuring_priority_class") == only("PriorityClass")["metadata"]["name"]
    del own["operator_namespace"], own["measuring_priority_class"]
    assert chart == own


def test_values_reach_the_operator(monkeypatch: pytest.MonkeyPatch):
    sets = (
        "prometheus.url=http://p:9090",
        "prometheus.querySet=cadvisor",
        "watchNamespaces={a,b}",
        "images.segment.tag=x",
        "images.segmentLlamaCpp.tag=y",
        "segments.llamaCppRuntimeMiB=99",
        "networkPolicies.enabled=false",
        "networkPolicies.monitoringNamespaceSelector.matchLabels.kubernetes\\.io/metadata\\.name=prometheus",
        "identity.trustDomain=example.org",
    )
    for name, value in settings(*sets).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.prometheus_url == "http://p:9090"
    assert read.query_set == "cadvisor"
    assert read.watched_namespaces == ("a", "b")
    assert read.segment_image == "splitinference/segment:x"
    assert read.segment_llama_cpp_image == "splitinference/segment-llamacpp:y"
    assert read.segment_llama_cpp_runtime_mib == 99
    assert read.network_policies is False
    assert read.monitoring_namespace_selector.as_json() == {"matchLabels": {"kubernetes.io/metadata.name": "prometheus"}}
    assert read.trust_domain == "example.org"


DEVICES = (
    "images.segment.byClass.cuda.repository=registry.example/segment",
    "images.segment.byClass.cuda.runtimeClassName=nvidia",
    "images.segment.byClass.npu.repository=npu",
    "images.segment.byClass.npu.tag=v7",
    "devices.hostMiB=900",
    "devices.rules[0].resource=example.com/npu-*",
    "devices.rules[0].class=npu",
    "devices.rules[0].memoryMib=4096",
)


def test_devices_and_the_images_of_their_classes_reach_the_operator_and_the_page(monkeypatch: pytest.MonkeyPatch):
    for name, value in settings(*DEVICES).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert {kind: (image.image, image.runtime_class_name) for kind, image in read.segment_images_by_class.items()} == {
        "cuda": ("registry.example/segment:0.1.0", "nvidia"),
        "npu": ("npu:v7", ""),
    }
    assert [(rule.resource, rule.kind, rule.memory_mib) for rule in read.device_rules] == [("example.com/npu-*", "npu", 4096)]
    assert read.segment_device_host_mib == 900


@pytest.mark.parametrize(
    "wrong",
    [
        "images.segment.byClass.cuda.tag=x",
        "images.segment.byClass.cpu.repository=x",
        "devices.rules[0].resource=gpu,devices.rules[0].class=cuda",
        "devices.rules[0].resource=example.com/npu,devices.rules[0].class=cpu",
        "devices.rules[0].resource=example.com/npu,devices.rules[0].class=npu,devices.rules[0].memory=5",
        "devices.hostMiB=1",
    ],
)
def test_devices_that_make_no_sense_are_refused_by_the_schema(wrong: str):
    assert run("template", "si", str(CHART), "--set", wrong).returncode != 0


def test_credentials_for_prometheus_are_files_and_no_right_on_secrets_is_asked_for():
    sets = (
        "prometheus.url=https://p",
        "prometheus.auth.tokenSecret.name=token",
        "prometheus.auth.headersSecret=tenant",
        "prometheus.auth.caSecret.name=ca",
        "prometheus.auth.caSecret.key=bundle.pem",
        "prometheus.auth.clientSecret=client",
    )
    pod = only("Deployment", *sets)["spec"]["template"]["spec"]
    read = {name.removeprefix(PREFIX): value for name, value in settings(*sets).items()}
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert read["PROMETHEUS_TOKEN_FILE"] == f"{mounts['prometheus-token']}/token"
    assert read["PROMETHEUS_HEADERS_FOLDER"] == mounts["prometheus-headers"]
    assert read["PROMETHEUS_CA_FILE"] == f"{mounts['prometheus-ca']}/ca.crt"
    assert read["PROMETHEUS_CLIENT_FOLDER"] == mounts["prometheus-client"]
    assert set(mounts) == set(volumes)
    assert volumes["prometheus-ca"]["secret"] == {"secretName": "ca", "items": [{"key": "bundle.pem", "path": "ca.crt"}]}
    with_credentials, without = ([obj["rules"] for obj in render(*given) if "rules" in obj] for given in (sets, ()))
    assert with_credentials == without


def test_tolerations_of_the_pods_that_measure_reach_the_operator(monkeypatch: pytest.MonkeyPatch):
    for key, value in settings("measureNodes.tolerations[0].key=gpu", "measureNodes.tolerations[0].operator=Exists").items():
        monkeypatch.setenv(key, value)
    assert Settings().measuring_tolerations == ({"key": "gpu", "operator": "Exists"},)


def test_a_token_of_the_operators_own_account_is_projected_for_prometheus():
    sets = (
        "prometheus.url=https://p",
        "prometheus.auth.serviceAccountToken.enabled=true",
        "prometheus.auth.serviceAccountToken.audience=thanos",
    )
    volumes = {volume["name"]: volume for volume in only("Deployment", *sets)["spec"]["template"]["spec"]["volumes"]}
    (source,) = volumes["prometheus-token"]["projected"]["sources"]
    assert source["serviceAccountToken"] == {"path": "token", "expirationSeconds": 3600, "audience": "thanos"}
    assert settings(*sets)[f"{PREFIX}PROMETHEUS_TOKEN_FILE"].endswith("/token")


@pytest.mark.parametrize(
    "sets",
    [
        ("prometheus.auth.tokenSecret.name=a", "prometheus.auth.basicAuthSecret=b"),
        ("prometheus.auth.tokenSecret.name=a", "prometheus.auth.serviceAccountToken.enabled=true"),
        ("prometheus.auth.insecureSkipVerify=true",),
        ("prometheus.auth.caSecret.name=Not A Name",),
    ],
)
def test_credentials_that_contradict_each_other_are_refused(sets: tuple[str, ...]):
    words = [word for value in sets for word in ("--set", value)]
    assert run("template", "si", str(CHART), *words).returncode != 0


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ("prometheus.auth.tokenSecret.name=a", "prometheus.auth has credentials, but prometheus.url is empty"),
        ("prometheus.auth.headersSecret=a", "prometheus.auth has credentials, but prometheus.url is empty"),
        ("prometheus.url=http://p,prometheus.auth.caSecret.name=a", "prometheus.url (http://p) is plain HTTP"),
        ("disruption.safeToEvict=true,disruption.doNotDisrupt=true", "set one of them"),
        ("serviceAccount.name=own,serviceAccount.annotations.a=b", "serviceAccount.name (own) names one that exists"),
        (
            "probe.enabled=true,probe.burstBytes=20000000",
            "probe.burstBytes (20000000) must be at most probe.budgetBytesPerMinute (16777216)",
        ),
        ("segments.cpuRequest=2,segments.cpuLimit=1500m", "segments.cpuRequest (2) must be at most segments.cpuLimit (1500m)"),
        ("gateway.memory=2Gi,gateway.resources.limits.memory=1024Mi", "gateway.memory (2Gi) must be at most"),
        ("gateway.cpuRequest=2,gateway.resources.limits.cpu=1", "gateway.cpuRequest (2) must be at most gateway.resources.limits.cpu (1)"),
        ("operator.resources.requests.memory=2Gi", "operator.resources.requests.memory (2Gi) must be at most"),
        ("probe.resources.requests.cpu=1", "probe.resources.requests.cpu (1) must be at most probe.resources.limits.cpu (250m)"),
        ("extraSettings.PROMETHEUS_URL=http://p", "SPLITINFERENCE_PROMETHEUS_URL is given twice"),
        ("operator.env[0].name=SPLITINFERENCE_NAMESPACES", "SPLITINFERENCE_NAMESPACES is given twice"),
        ("watchNamespaces={a,b},tokenReview.gateways[0].namespace=c,tokenReview.gateways[0].name=d", "names the namespace c"),
        ("crds.instal=true", "instal"),
        ("identity.certManager.issuerRef.name=company,identity.issuerSecret=own", "set one of them"),
        ("identity.issuerSecret=splitinference-root-key", "they are different Secrets"),
    ],
)
def test_values_that_contradict_each_other_are_refused_in_words(sets: str, said: str):
    done = run("template", "si", str(CHART), "--set", sets)
    assert done.returncode != 0
    assert said in done.stderr


@pytest.mark.parametrize(
    "sets",
    [
        "disruption.safeToEvict=false,disruption.doNotDisrupt=true",
        "probe.enabled=true,probe.budgetBytesPerMinute=0",
        "segments.cpuRequest=500m,segments.cpuLimit=0.5",
        "gateway.memory=1024Mi,gateway.resources.limits.memory=1Gi",
        "gateway.memory=1000M,gateway.resources.limits.memory=1Gi",
        "watchNamespaces={a},tokenReview.gateways[0].namespace=a,tokenReview.gateways[0].name=d",
    ],
)
def test_values_that_agree_are_taken(sets: str):
    done = run("template", "si", str(CHART), "--set", sets)
    assert done.returncode == 0, done.stderr


def test_values_of_a_chart_before_are_taken_by_an_upgrade_that_reuses_them():
    """`--reuse-values` has none of the values that are new here."""
    done = run("template", "si", str(CHART), "--set-json", "crds=null")
    assert done.returncode == 0, done.stderr
    assert "helm.sh/resource-policy: keep" in done.stdout


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("prometheus.querySet=guess", "querySet"),
        ("prometheus.url=prometheus:9090", "url"),
        ("images.pullPolicy=Sometimes", "pullPolicy"),
        ("segments.user=0", "user"),
        ("segments.cpuRequest=lots", "cpuRequest"),
        ("resyncSeconds=0", "resyncSeconds"),
        ("unknown=1", "unknown"),
        ("probe.budgetBytesPerMinute=-1", "budgetBytesPerMinute"),
        ("probe.burstBytes=1000", "burstBytes"),
        ("prometheus.linkMaxAgeSeconds=0", "linkMaxAgeSeconds"),
        ("watchNamespaces={UPPER}", "watchNamespaces"),
        ("extraSettings.lower=1", "lower"),
    ],
)
def test_wrong_values_are_refused_by_name(value, named):
    done = run("template", "si", str(CHART), "--set", value)
    assert done.returncode != 0
    assert named in done.stderr


def test_every_value_has_a_schema():
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(yaml.safe_load((CHART / "values.yaml").read_text())) <= set(schema["properties"])


def test_images_may_come_from_a_registry_with_a_port():
    image = container("images.operator.repository=localhost:5000/x/operator", "images.operator.tag=dev")["image"]
    assert re.fullmatch(r"localhost:5000/x/operator:dev", image)


def test_an_umbrella_chart_may_have_a_condition_and_globals(tmp_path):
    text = """
global: {imageRegistry: registry.corp.example/mirror/, imagePullSecrets: [one, {name: two}], other: 1}
splitinference: {enabled: true, segments: {user: null}}
"""
    done = umbrella(tmp_path, text)
    assert done.returncode == 0, done.stderr
    objects = tuple(obj for obj in yaml.safe_load_all(done.stdout) if obj)
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"].startswith("registry.corp.example/mirror/splitinference/operator:")
    assert pod["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]
    given = environment(objects)
    assert given["SPLITINFERENCE_SEGMENT_IMAGE"].startswith("registry.corp.example/mirror/splitinference/segment:")
    assert given["SPLITINFERENCE_IMAGE_PULL_SECRETS"] == "one,two"
    assert given["SPLITINFERENCE_POD_USER"] == ""


def test_a_condition_that_is_false_leaves_it_out(tmp_path):
    done = umbrella(tmp_path, "splitinference: {enabled: false}")
    assert done.returncode == 0, done.stderr
    assert "Deployment" not in done.stdout


def test_numbers_stand_where_kubernetes_wants_strings(tmp_path):
    objects = values(
        tmp_path,
        """
segments: {cpuRequest: 1, cpuLimit: 2.5, user: 1000660000, resources: {limits: {ephemeral-storage: 1000000000}}}
operator: {podAnnotations: {a: 8080, b: true, c: 1.5}, nodeSelector: {gpu: true, pool: 3}}
extraSettings: {PROFILE_SECONDS: 1000000, RETRY_SECONDS: 0.5}
podTemplate: {segments: {annotations: {port: 8080, enabled: true}, env: [{name: THREADS, value: 8}]}}
disruption: {safeToEvict: true}
""",
    )
    given = environment(objects)
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    assert {"a": "8080", "b": "true", "c": "1.5"}.items() <= template["metadata"]["annotations"].items()
    assert template["spec"]["nodeSelector"] == {"gpu": "true", "pool": "3"}
    assert (given["SPLITINFERENCE_SEGMENT_CPU_REQUEST"], given["SPLITINFERENCE_SEGMENT_CPU_LIMIT"]) == ("1", "2.5")
    assert given["SPLITINFERENCE_POD_USER"] == "1000660000"
    assert (given["SPLITINFERENCE_PROFILE_SECONDS"], given["SPLITINFERENCE_RETRY_SECONDS"]) == ("1000000", "0.5")
    for name in ("SPLITINFERENCE_POD_TEMPLATE", "SPLITINFERENCE_SEGMENT_RESOURCES", "SPLITINFERENCE_SAFE_TO_EVICT"):
        assert given[name]


def test_the_operator_takes_what_such_values_become(tmp_path, monkeypatch):
    text = """
segments: {user: "", resources: {limits: {ephemeral-storage: 1000000000}}}
podTemplate: {segments: {annotations: {port: 8080, enabled: true}, env: [{name: THREADS, value: 8}]}, gateway: {priorityClassName: high}}
serviceMesh: {optOut: []}
"""
    for name, value in environment(values(tmp_path, text)).items():
        monkeypatch.setenv(name, value)
    read = Settings()
    assert read.pod_user is None
    assert read.mesh_opt_outs == ()
    pod = Manifests(read).segment(parsed(a_resource()), a_profile(), Segment(start=0, end=4, node="a"), 1, 1).pod
    assert {"port": "8080", "enabled": "true"}.items() <= pod["metadata"]["annotations"].items()
    assert {"name": "THREADS", "value": "8"} in pod["spec"]["containers"][0]["env"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"] == "1000000000"


def test_a_digest_goes_before_a_tag():
    digest = "sha256:" + "a" * 64
    given = settings("images.segment.digest=" + digest, "images.segment.tag=x")
    assert given["SPLITINFERENCE_SEGMENT_IMAGE"] == f"splitinference/segment@{digest}"
    assert run("template", "si", str(CHART), "--set", "images.segment.digest=latest").returncode != 0
