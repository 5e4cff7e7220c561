"""The page in the chart: off by default, restricted, reading alone, and reading nodes as the operator does."""

from typing import Any

import pytest

from splitinference.settings import Settings
from splitinference.ui.__main__ import PageSettings
from tests.chart.rendered import CHART, PREFIX, render, run, settings

ON = "page.enabled=true"
EXPOSED = (ON, "page.exposed=true", "page.tlsSecret=cert", "page.hosts={split.example.com}")
NAME = "si-splitinference-page"


def of_the_page(*sets: str) -> list[dict[str, Any]]:
    return [obj for obj in render(*sets) if (obj["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == "page"]


def pod(*sets: str) -> dict[str, Any]:
    (found,) = [obj for obj in of_the_page(*sets) if obj["kind"] == "Deployment"]
    spec: dict[str, Any] = found["spec"]["template"]["spec"]
    return spec


def environment(*sets: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in pod(*sets)["containers"][0]["env"] if "value" in entry}


def rules(*sets: str) -> list[dict[str, Any]]:
    return [rule for obj in of_the_page(*sets) if obj["kind"] in ("Role", "ClusterRole") for rule in obj["rules"]]


def test_there_is_no_page_unless_it_is_asked_for():
    assert not of_the_page()


def test_it_reads_and_asks_and_changes_nothing():
    reviews = {"tokenreviews", "subjectaccessreviews", "selfsubjectaccessreviews"}
    for sets in ((ON,), (ON, "page.whatIf.enabled=true"), (ON, "watchNamespaces={a,b}"), EXPOSED):
        for rule in rules(*sets):
            assert set(rule["verbs"]) <= {"get", "list", "watch"} or (set(rule["resources"]) <= reviews and rule["verbs"] == ["create"])
            assert "secrets" not in rule["resources"]
            assert "*" not in rule["resources"] + rule["verbs"] + rule["apiGroups"]


def test_configmaps_are_read_for_what_if_alone():
    def reads_any(found: list[dict[str, Any]]) -> bool:
        return any("configmaps" in rule["resources"] and not rule.get("resourceNames") for rule in found)

    assert not reads_any(rules(ON))
    assert reads_any(rules(ON, "page.whatIf.enabled=true"))


def test_in_some_namespaces_it_reads_resources_of_these_alone():
    found = [obj for obj in of_the_page(ON, "watchNamespaces={a,b}") if obj["kind"] == "ClusterRole"]
    assert not any("splitinferences" in rule["resources"] for obj in found for rule in obj["rules"])
    roles = [obj for obj in of_the_page(ON, "watchNamespaces={a,b}") if obj["kind"] == "Role" and obj["metadata"]["name"] == NAME]
    assert {role["metadata"]["namespace"] for role in roles} == {"a", "b"}


def test_it_runs_restricted_with_an_account_of_its_own():
    spec = pod(ON)
    assert spec["serviceAccountName"] == NAME
    assert spec["securityContext"]["runAsNonRoot"] is True
    (container,) = spec["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["command"] == ["python", "-m", "splitinference.ui"]


def test_it_reads_nodes_with_the_operators_own_settings():
    sets = ("prometheus.url=http://p:9090", "nodeDefaults.coreGflops=7", "watchNamespaces={a}", "extraSettings.SOLVE_SECONDS=9")
    operator, page = settings(*sets), environment(ON, *sets)
    shared = {name: value for name, value in page.items() if not name.startswith(f"{PREFIX}PAGE_")}
    assert shared.items() <= operator.items()
    assert {name.removeprefix(PREFIX).lower() for name in shared} <= set(Settings.model_fields)
    own = {name.removeprefix(f"{PREFIX}PAGE_").lower() for name in page.keys() - shared.keys()}
    assert own <= set(PageSettings.model_fields)


def test_the_page_and_helm_test_have_every_setting_by_which_the_operator_reads_and_its_catalogue():
    sets = ("catalogue.configMap=mine", "prometheus.queries.nodeWatts=w", "segments.llamaCppRuntimeMiB=99", "policy.allowedHostPaths={/m}")
    operator, page = settings(*sets), environment(ON, *sets)
    for name in ("CATALOGUE_FOLDER", "QUERY_NODE_WATTS", "SEGMENT_LLAMA_CPP_RUNTIME_MIB"):
        assert page[f"{PREFIX}{name}"] == operator[f"{PREFIX}{name}"] != ""
    assert f"{PREFIX}ALLOWED_HOST_PATHS" not in page, "what the operator decides by is not the page's"
    (test,) = [obj for obj in render(*sets) if obj["kind"] == "Pod"]
    for spec in (pod(ON, *sets), test["spec"]):
        assert {"name": "catalogue", "configMap": {"name": "mine"}} in spec["volumes"]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts["catalogue"] == page[f"{PREFIX}CATALOGUE_FOLDER"]


def test_its_ports_are_those_that_it_serves():
    ports = {port["name"]: port["containerPort"] for port in pod(ON)["containers"][0]["ports"]}
    assert ports == {"page": PageSettings.model_fields["port"].default, "health": PageSettings.model_fields["health_port"].default}


def test_defaults_are_those_of_the_program(monkeypatch: pytest.MonkeyPatch):
    for name, value in environment(ON).items():
        monkeypatch.setenv(name, value)
    assert PageSettings() == PageSettings.model_construct()


def test_unless_it_is_exposed_nobody_reaches_it_by_the_network():
    kinds = {obj["kind"]: obj for obj in of_the_page(ON)}
    assert "Service" not in kinds
    assert kinds["NetworkPolicy"]["spec"]["ingress"] == []
    assert environment(ON)[f"{PREFIX}PAGE_EXPOSED"] == "false"


def test_exposed_it_has_a_certificate_names_and_a_service():
    kinds = {obj["kind"]: obj for obj in of_the_page(*EXPOSED)}
    assert kinds["Service"]["spec"]["ports"][0]["targetPort"] == "page"
    assert environment(*EXPOSED)[f"{PREFIX}PAGE_HOSTS"] == "split.example.com"
    assert {"name": "tls", "secret": {"secretName": "cert"}} in pod(*EXPOSED)["volumes"]
    assert kinds["NetworkPolicy"]["spec"]["ingress"] == [{"ports": [{"protocol": "TCP", "port": "page"}]}]


@pytest.mark.parametrize(
    ("sets", "named"),
    [
        (("page.exposed=true",), "page.tlsSecret"),
        (("page.exposed=true", "page.tlsSecret=cert"), "page.hosts"),
        (("page.hosts={https://x}",), "hosts"),
        (("page.whatIf.seconds=0",), "seconds"),
        (("page.unknown=1",), "unknown"),
    ],
)
def test_values_that_contradict_each_other_are_refused_by_name(sets: tuple[str, ...], named: str):
    words = [word for value in (ON, *sets) for word in ("--set", value)]
    done = run("template", "si", str(CHART), *words)
    assert done.returncode != 0
    assert named in done.stderr
