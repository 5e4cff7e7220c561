"""The chart, rendered by helm: what is installed, and how it is packaged."""

import yaml

from splitinference.controller.manifests.segment import Manifests
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from tests.chart.rendered import CHART, PROBE, ROOT, container, only, render, run, settings
from tests.controller.manifests.built import a_profile, a_resource
from tests.controller.objects import parsed


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


def test_a_service_monitor_is_made_when_asked_for():
    assert not any(obj["kind"] == "ServiceMonitor" for obj in render())
    monitor = only("ServiceMonitor", "serviceMonitor.enabled=true")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= only("Service")["metadata"]["labels"].items()


def test_the_notes_say_how_to_uninstall():
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    delete, uninstall = notes.index("kubectl delete splitinferences"), notes.index("helm uninstall")
    assert delete < uninstall
    assert "finalizer" in notes


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


def test_names_stay_within_kubernetes_limits_for_the_longest_release():
    done = run(
        "template", "r" * 53, str(CHART), "--set", PROBE, "--set", "podMonitors.enabled=true", "--set", "serviceMonitor.enabled=true"
    )
    assert done.returncode == 0, done.stderr
    for obj in (found for found in yaml.safe_load_all(done.stdout) if found):
        limit = 253 if obj["kind"].startswith(("Cluster", "ValidatingAdmissionPolicy")) else 63
        assert len(obj["metadata"]["name"]) <= limit, obj["metadata"]["name"]
        assert all(len(str(value)) <= 63 for value in obj["metadata"]["labels"].values())


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
