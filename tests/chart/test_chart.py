"""The chart, rendered by helm: what is installed, with which rights, and what it refuses."""

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.probe.__main__ import parser
from splitinference.probe.rounds import Pace
from splitinference.settings import Settings
from tests.chart.helm import helm
from tests.controller.objects import parsed
from tests.controller.test_manifests import a_profile, a_resource

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "splitinference"
PREFIX = "SPLITINFERENCE_"
PROBE = "probe.enabled=true"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False, timeout=60)


@cache
def render(*sets: str) -> tuple[dict[str, Any], ...]:
    words = [word for value in sets for word in ("--set", value)]
    done = run("template", "si", str(CHART), "--namespace", "ops", *words)
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.safe_load_all(done.stdout) if found)


def only(kind: str, *sets: str) -> dict[str, Any]:
    (found,) = [obj for obj in render(*sets) if obj["kind"] == kind]
    return found


def container(*sets: str) -> dict[str, Any]:
    return only("Deployment", *sets)["spec"]["template"]["spec"]["containers"][0]


def settings(*sets: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(*sets)["env"] if "value" in entry}


def values(tmp_path: Path, text: str) -> tuple[dict[str, Any], ...]:
    """The chart with values from a file, as most people give them: YAML decides what is a number."""
    file = tmp_path / "values.yaml"
    file.write_text(text)
    done = run("template", "si", str(CHART), "--namespace", "ops", "--values", str(file))
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.safe_load_all(done.stdout) if found)


def environment(objects: tuple[dict[str, Any], ...]) -> dict[str, str]:
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    return {entry["name"]: entry.get("value", "") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}


def test_lint_has_nothing_to_say():
    done = run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout
    assert "ERROR" not in done.stdout


def test_the_crd_comes_with_the_chart_and_stays_when_it_goes():
    found, origin = only("CustomResourceDefinition"), yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    about = found["metadata"]
    assert about["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert origin["metadata"]["labels"].items() <= about["labels"].items()
    assert {**found, "metadata": origin["metadata"]} == origin
    assert about["name"] == origin["metadata"]["name"]
    assert "annotations" not in only("CustomResourceDefinition", "crds.keep=false")["metadata"]
    assert "CustomResourceDefinition" not in {obj["kind"] for obj in render("crds.install=false")}


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


def test_measuring_nodes_takes_rights_in_the_operators_namespace_alone_and_gives_way():
    name = "si-splitinference-measure"
    (role,) = [obj for obj in render("watchNamespaces={a}") if obj["kind"] == "Role" and obj["metadata"]["name"] == name]
    assert role["metadata"]["namespace"] == "ops"
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {"pods", "configmaps"}
    assert not [
        rule
        for obj in render()
        if obj["kind"] == "ClusterRole"
        for rule in obj["rules"]
        if "nodes" in rule["resources"] and "patch" in rule["verbs"]
    ]
    assert (only("PriorityClass")["value"], only("PriorityClass")["preemptionPolicy"]) == (-1000000, "Never")
    off = render("measureNodes.enabled=false")
    assert not [obj for obj in off if obj["metadata"]["name"] == name or obj["kind"] == "PriorityClass"]
    assert settings("measureNodes.enabled=false")[f"{PREFIX}MEASURE_NODES"] == "false"


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


def test_helm_test_runs_as_the_operator_and_is_no_part_of_what_is_installed():
    (test,) = [obj for obj in render("prometheus.url=https://p", "prometheus.auth.tokenSecret.name=t") if obj["kind"] == "Pod"]
    assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"
    given = ("prometheus.url=https://p", "prometheus.auth.tokenSecret.name=t")
    pod, operator = test["spec"], only("Deployment", *given)["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == operator["serviceAccountName"]
    for part in ("image", "env", "volumeMounts", "securityContext"):
        assert pod["containers"][0][part] == operator["containers"][0][part]
    assert pod["volumes"] == operator["volumes"]
    selector = only("Deployment")["spec"]["selector"]["matchLabels"].items()
    assert not selector <= test["metadata"]["labels"].items(), "the Service would send scrapes to it"


def test_the_operator_is_restricted():
    pod = only("Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def test_a_second_operator_stands_by_and_a_drain_or_an_upgrade_leaves_one():
    deployment = only("Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"] == {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}, "on full nodes one gives way"
    assert only("Deployment", "operator.replicas=1")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    labels = deployment["template"]["metadata"]["labels"].items()
    budget = only("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1, "with minAvailable a single replica that is left could never be drained"
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    for selector in (budget["selector"], spread["labelSelector"]):
        assert selector["matchLabels"].items() <= labels


def test_one_operator_alone_needs_no_budget():
    assert "PodDisruptionBudget" not in {obj["kind"] for obj in render("operator.replicas=1")}
    assert "topologySpreadConstraints" not in only("Deployment", "operator.replicas=1")["spec"]["template"]["spec"]


def test_the_lease_is_the_releases_own_and_may_be_written():
    given = settings("operatorClass=canary")
    assert given["SPLITINFERENCE_OPERATOR_CLASS"] == "canary"
    namespace, name = given["SPLITINFERENCE_LEASE"].split("/")
    (role,) = [obj for obj in render() if obj["kind"] == "Role" and obj["metadata"]["name"].endswith("-own")]
    assert role["metadata"]["namespace"] == namespace == "ops"
    (named,) = [rule for rule in role["rules"] if rule["resources"] == ["leases"] and rule["verbs"] == ["patch"]]
    assert named["resourceNames"] == [name]


def test_probes_and_ports_are_those_that_the_operator_serves():
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    read = Settings.model_construct()
    assert ports == {"health": read.health_port, "metrics": read.metrics_port}
    assert container()["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}


def test_the_metrics_service_finds_the_operator():
    selector = only("Service")["spec"]["selector"]
    assert selector.items() <= only("Deployment")["spec"]["template"]["metadata"]["labels"].items()


# --- rights --------------------------------------------------------------------------------------------------------------------------


def allowed(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(group, res, verb) for rule in rules for group in rule["apiGroups"] for res in rule["resources"] for verb in rule["verbs"]}


def test_no_right_is_a_wildcard():
    for sets in ((), ("watchNamespaces={a}",)):
        for obj in render(*sets):
            if obj["kind"] in ("Role", "ClusterRole"):
                assert not any("*" in right for right in allowed(obj["rules"]))


def test_the_operator_may_make_what_it_makes():
    rights = allowed(only("ClusterRole")["rules"])
    builder = Manifests(Settings(network_policies=True))
    plurals = {"NetworkPolicy": "networkpolicies", "PodDisruptionBudget": "poddisruptionbudgets"}
    for obj in [*builder.gateway(parsed(a_resource()), a_profile()), builder.route(parsed(a_resource()), {})]:
        version = obj["apiVersion"]
        group = version.split("/")[0] if "/" in version else ""
        plural = plurals.get(obj["kind"], obj["kind"].lower() + "s")
        assert {(group, plural, verb) for verb in ("create", "patch", "get")} <= rights, obj["kind"]


def test_the_operator_may_delete_the_network_policy_of_verifiers_that_are_gone():
    assert ("networking.k8s.io", "networkpolicies", "delete") in allowed(only("ClusterRole")["rules"])


def test_the_operator_has_each_right_that_it_gives_to_a_gateway():
    rights = allowed(only("ClusterRole")["rules"])
    (role,) = [obj for obj in Manifests(Settings()).gateway(parsed(a_resource()), a_profile()) if obj["kind"] == "Role"]
    assert allowed(role["rules"]) <= rights


def test_in_some_namespaces_alone_it_writes_nowhere_else():
    sets = ("watchNamespaces={a,b}",)
    assert all(verb in ("get", "list", "watch") for _, _, verb in allowed(only("ClusterRole", *sets)["rules"]))
    roles = [obj for obj in render(*sets) if obj["kind"] == "Role"]
    assert [role["metadata"]["namespace"] for role in roles if role["metadata"]["namespace"] != "ops"] == ["a", "b"]


def test_no_secret_is_read_but_the_operators_own():
    for sets in ((), ("watchNamespaces={a,b}",)):
        for obj in render(*sets):
            for rule in obj["rules"] if obj["kind"] in ("Role", "ClusterRole") else ():
                if "secrets" in rule["resources"] and set(rule["verbs"]) - {"create", "patch"}:
                    assert obj["metadata"]["namespace"] == "ops"
                    assert rule["resourceNames"] == [Settings.model_construct().root_key_secret]


def secret_rights(role: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Each verb with the names that it is limited to."""
    return sorted(
        (verb, rule.get("resourceNames", [])) for rule in role["rules"] if "secrets" in rule["resources"] for verb in rule["verbs"]
    )


def test_secrets_are_written_for_certificates_and_never_read():
    assert secret_rights(only("ClusterRole")) == [("create", []), ("patch", [])]


def test_the_root_key_is_the_one_secret_of_its_own_namespace_that_the_operator_reads():
    (role,) = [obj for obj in render() if obj["kind"] == "Role" and obj["metadata"]["name"].endswith("-root-key")]
    assert role["metadata"]["namespace"] == "ops"
    assert secret_rights(role) == [("create", []), ("get", [Settings.model_construct().root_key_secret])]
    (binding,) = [obj for obj in render() if obj["kind"] == "RoleBinding" and obj["metadata"]["name"].endswith("-root-key")]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == only("ClusterRoleBinding")["subjects"]
    (space,) = [entry for entry in container()["env"] if entry["name"] == f"{PREFIX}OPERATOR_NAMESPACE"]
    assert space["value"] == "ops"


def policy(name: str, *sets: str) -> dict[str, Any]:
    (found,) = [obj for obj in render(*sets) if obj["kind"] == "NetworkPolicy" and obj["metadata"]["name"].endswith(name)]
    return found


def test_only_monitoring_reaches_the_operator():
    spec = policy("-operator")["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= only("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert rule["from"] == [{"namespaceSelector": Settings.model_construct().monitoring_namespace_selector.as_json()}]
    assert [port["port"] for port in rule["ports"]] == ["metrics"]


def test_policies_of_resources_admit_the_operator_that_the_chart_makes():
    objects = Manifests(Settings(operator_namespace="ops")).gateway(parsed(a_resource()), a_profile())
    policies = [obj["spec"]["ingress"] for obj in objects if obj["kind"] == "NetworkPolicy"]
    who = [peer for ingress in policies for rule in ingress for peer in rule.get("from", []) if len(peer) == 2]
    assert len(who) == 2
    labels = only("Deployment")["spec"]["template"]["metadata"]["labels"]
    assert all(peer["podSelector"]["matchLabels"].items() <= labels.items() for peer in who)
    assert all(peer["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ops"} for peer in who)


def test_without_policies_there_are_none():
    assert not any(obj["kind"] == "NetworkPolicy" for obj in render(PROBE, "networkPolicies.enabled=false"))
    assert "networkpolicies" not in {plural for _, plural, _ in allowed(only("ClusterRole", "networkPolicies.enabled=false")["rules"])}


def test_all_namespaces_may_scrape_where_that_is_said():
    spec = policy("-operator", "networkPolicies.monitoringNamespaceSelector.matchLabels=null")["spec"]
    assert spec["ingress"][0]["from"] == [{"namespaceSelector": {}}]


def test_an_account_of_ones_own_is_taken():
    kinds = {obj["kind"] for obj in render("serviceAccount.name=mine")}
    assert "ServiceAccount" not in kinds
    assert only("ClusterRoleBinding", "serviceAccount.name=mine")["subjects"][0]["name"] == "mine"
    assert only("Deployment", "serviceAccount.name=mine")["spec"]["template"]["spec"]["serviceAccountName"] == "mine"


# --- the link probe ------------------------------------------------------------------------------------------------------------------


def test_there_is_no_probe_unless_it_is_asked_for():
    assert not any("probe" in obj["metadata"]["name"] for obj in render())


def test_the_probe_runs_restricted_and_without_a_token():
    pod = only("DaemonSet", PROBE)["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    (probe,) = pod["containers"]
    assert probe["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert set(probe["resources"]["requests"]) == set(probe["resources"]["limits"]) == {"cpu", "memory"}
    assert "hostNetwork" not in pod, "it measures what segments see"


def test_the_probe_adds_no_right():
    rights = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding", "ServiceAccount")
    assert [obj for obj in render(PROBE) if obj["kind"] in rights] == [obj for obj in render() if obj["kind"] in rights]


def test_the_probes_words_are_those_that_its_program_takes():
    sets = (PROBE, "probe.budgetBytesPerMinute=2097152", "probe.burstBytes=131072", "probe.intervalSeconds=3", "clusterDomain=c.test")
    (found,) = only("DaemonSet", *sets)["spec"]["template"]["spec"]["containers"]
    words = [word.replace("$(NODE_NAME)", "edge-1").replace("$(POD_IP)", "10.0.0.7") for word in found["args"]]
    read = parser().parse_args(words)
    assert (read.node, read.host, read.peers) == ("edge-1", "10.0.0.7", "si-splitinference-probe.ops.svc.c.test")
    assert (read.budget, read.burst_bytes, read.interval) == (2 << 20, 128 << 10, 3)
    assert {env["name"] for env in found["env"]} == {"NODE_NAME", "POD_IP"}
    assert {port["name"]: port["containerPort"] for port in found["ports"]} == {"metrics": read.metrics_port, "probe": read.port}


def test_the_charts_pace_is_the_programs_default():
    (found,) = only("DaemonSet", PROBE)["spec"]["template"]["spec"]["containers"]
    read = parser().parse_args([word.replace("$(NODE_NAME)", "a") for word in found["args"]])
    pace = Pace()
    assert (read.interval, read.burst_bytes, read.burst_interval, read.budget) == (
        pace.interval_s,
        pace.burst_bytes,
        pace.burst_every_s,
        pace.budget_bytes_per_minute,
    )
    assert read.keep == Settings.model_construct().link_max_age_seconds


def test_probes_find_each_other_by_a_headless_service_and_are_not_taken_for_the_operator():
    (service,) = [obj for obj in render(PROBE) if obj["kind"] == "Service" and obj["spec"].get("clusterIP") == "None"]
    labels = only("DaemonSet", PROBE)["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    operators = [obj for obj in render(PROBE) if obj["kind"] == "Service" and obj is not service]
    assert not any(obj["spec"]["selector"].items() <= labels.items() for obj in operators)


def test_only_probes_reach_probes_and_only_monitoring_their_metrics():
    spec = policy("-probe", PROBE)["spec"]
    labels = only("DaemonSet", PROBE)["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    between, scraped = spec["ingress"]
    assert between == {"from": [{"podSelector": spec["podSelector"]}], "ports": [{"protocol": "TCP", "port": "probe"}]}
    assert scraped["from"] == policy("-operator")["spec"]["ingress"][0]["from"]
    assert [port["port"] for port in scraped["ports"]] == ["metrics"]


def test_the_probe_goes_where_segments_may_go():
    taint = {"key": "edge", "operator": "Exists"}
    pod = only("DaemonSet", PROBE, "probe.tolerations[0].key=edge", "probe.tolerations[0].operator=Exists")["spec"]["template"]["spec"]
    assert pod["tolerations"] == [taint]


# --- options and notes ---------------------------------------------------------------------------------------------------------------


def test_a_service_monitor_is_made_when_asked_for():
    assert not any(obj["kind"] == "ServiceMonitor" for obj in render())
    monitor = only("ServiceMonitor", "serviceMonitor.enabled=true")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= only("Service")["metadata"]["labels"].items()


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


def test_the_notes_say_how_to_uninstall():
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    delete, uninstall = notes.index("kubectl delete splitinferences"), notes.index("helm uninstall")
    assert delete < uninstall
    assert "finalizer" in notes


def test_images_may_come_from_a_registry_with_a_port():
    image = container("images.operator.repository=localhost:5000/x/operator", "images.operator.tag=dev")["image"]
    assert re.fullmatch(r"localhost:5000/x/operator:dev", image)


def test_only_the_gateways_that_are_named_may_review_tokens():
    assert not [obj for obj in render() if "token-review" in obj["metadata"]["name"]]
    asked = ("tokenReview.gateways[0].namespace=team", "tokenReview.gateways[0].name=chat")
    role, binding = [obj for obj in render(*asked) if "token-review" in obj["metadata"]["name"]]
    assert role["rules"] == [{"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]}]
    account = {obj["kind"]: obj for obj in Manifests(Settings()).gateway(parsed(a_resource()), a_profile())}["ServiceAccount"]["metadata"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


# --- files ---------------------------------------------------------------------------------------------------------------------------


def test_the_charts_crd_is_a_file_of_its_own_that_equals_the_repositorys():
    copy, origin = CHART / "files" / "crd.yaml", ROOT / "crds" / "splitinference.yaml"
    assert not any(path.is_symlink() for path in CHART.rglob("*")), "Flux and Windows drop symlinks"
    assert copy.read_bytes() == origin.read_bytes(), f"cp {origin.relative_to(ROOT)} {copy.relative_to(ROOT)}"


def test_a_packaged_chart_brings_the_crd_and_lints(tmp_path):
    assert run("package", str(CHART), "--destination", str(tmp_path)).returncode == 0
    (packed,) = tmp_path.glob("splitinference-*.tgz")
    assert run("lint", "--strict", str(packed)).returncode == 0
    done = run("template", "si", str(packed))
    assert "CustomResourceDefinition" in {obj["kind"] for obj in yaml.safe_load_all(done.stdout) if obj}


# --- umbrella charts -----------------------------------------------------------------------------------------------------------------


def umbrella(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The chart below another, with these values of the other."""
    (folder / "charts").mkdir()
    assert run("package", str(CHART), "--destination", str(folder / "charts")).returncode == 0
    dependency = {"name": "splitinference", "version": "*", "condition": "splitinference.enabled", "repository": ""}
    about = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(text)
    return run("template", "up", str(folder), "--namespace", "ops")


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


# --- what values look like -----------------------------------------------------------------------------------------------------------


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


def test_names_stay_within_kubernetes_limits_for_the_longest_release():
    done = run(
        "template", "r" * 53, str(CHART), "--set", PROBE, "--set", "podMonitors.enabled=true", "--set", "serviceMonitor.enabled=true"
    )
    assert done.returncode == 0, done.stderr
    for obj in (found for found in yaml.safe_load_all(done.stdout) if found):
        limit = 253 if obj["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy")) else 63
        assert len(obj["metadata"]["name"]) <= limit, obj["metadata"]["name"]
        assert all(len(str(value)) <= 63 for value in obj["metadata"]["labels"].values())


# --- pod monitors and budgets --------------------------------------------------------------------------------------------------------


def test_pod_monitors_find_segments_and_gateways_by_their_metrics_port():
    assert not any(obj["kind"] == "PodMonitor" for obj in render())
    monitors = [obj["spec"] for obj in render("podMonitors.enabled=true") if obj["kind"] == "PodMonitor"]
    builder = Manifests(Settings())
    segment = builder.segment(parsed(a_resource()), a_profile(), Segment(start=0, end=4, node="a"), 1, 1).pod
    gateway = next(obj for obj in builder.gateway(parsed(a_resource()), a_profile()) if obj["kind"] == "Deployment")["spec"]["template"]
    labels = {"app.kubernetes.io/managed-by": "splitinference"}
    for pod in (segment, gateway):
        (monitor,) = [m for m in monitors if m["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()]
        (endpoint,) = monitor["podMetricsEndpoints"]
        ports = {port["name"]: str(port["containerPort"]) for port in pod["spec"]["containers"][0]["ports"]}
        assert ports[endpoint["port"]] == pod["metadata"]["annotations"]["prometheus.io/port"]
        assert labels.items() <= monitor["selector"]["matchLabels"].items()
        assert monitor["namespaceSelector"] == {"any": True}
    some = [obj["spec"] for obj in render("podMonitors.enabled=true", "watchNamespaces={a,b}") if obj["kind"] == "PodMonitor"]
    assert all(monitor["namespaceSelector"] == {"matchNames": ["a", "b"]} for monitor in some)


def test_services_take_both_families_and_the_probes_one():
    services = [obj["spec"] for obj in render(PROBE) if obj["kind"] == "Service"]
    assert {spec.get("clusterIP", ""): spec["ipFamilyPolicy"] for spec in services} == {"": "PreferDualStack", "None": "SingleStack"}


def test_the_operator_may_list_events_and_keep_what_it_owns():
    rights = allowed(only("ClusterRole")["rules"])
    assert ("", "events", "list") in rights
    for group, plural in (("rbac.authorization.k8s.io", "roles"), ("policy", "poddisruptionbudgets"), ("", "services")):
        assert {(group, plural, verb) for verb in ("list", "watch", "create", "patch")} <= rights
    assert not any(
        resource == "poddisruptionbudgets" for _, resource, _ in allowed(only("ClusterRole", "disruption.budgets=false")["rules"])
    )
