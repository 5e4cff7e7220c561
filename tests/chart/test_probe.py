"""The chart's link probe."""

from splitinference.probe.__main__ import parser
from splitinference.probe.rounds import Pace
from splitinference.settings import Settings
from tests.chart.rendered import PROBE, only, policy, render


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
