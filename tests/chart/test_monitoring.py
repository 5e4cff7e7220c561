"""Alerts and dashboard: on a real Prometheus, with the metrics that our programs' own code exports."""

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.adapters.real_prometheus import programs, serving_samples
from tests.chart.exported import Programs, line, names
from tests.chart.rendered import CHART, ROOT, only, render, run

RULES = ("prometheusRule.enabled=true",)
DASHBOARD = json.loads((CHART / "files" / "dashboard.json").read_text())
WORD = re.compile(r"\b(splitinference_[a-z0-9_]+)\b")
VARIABLES = {"$namespace": "team", "$name": "chat", "$__rate_interval": "1m", "$__range": "5m"}


def spec() -> dict[str, Any]:
    found: dict[str, Any] = only("PrometheusRule", *RULES)["spec"]
    return found


def rules(*sets: str) -> list[dict[str, Any]]:
    return [rule for group in only("PrometheusRule", *RULES, *sets)["spec"]["groups"] for rule in group["rules"]]


def alerts(*sets: str) -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules(*sets) if "alert" in rule}


def queries() -> list[tuple[str, str]]:
    """Each query of the dashboard, after the title of its panel."""
    panels = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return panels + [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]


def given(expression: str) -> str:
    for word, value in VARIABLES.items():
        expression = expression.replace(word, value)
    return expression


# --- names -----------------------------------------------------------------------------------------------------------------------------


def test_every_metric_that_a_rule_or_a_panel_names_is_exported():
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    known = names() | recorded
    asked = [rule["expr"] for rule in rules()] + [expression for _, expression in queries()]
    asked += [variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["type"] == "query"]
    found = {word for expression in asked for word in WORD.findall(expression)}
    assert len(found) > 40
    assert found - known == set()


def test_every_metric_that_the_operator_exports_is_in_the_reference():
    page = (ROOT / "docs/reference/metrics.md").read_text() + (ROOT / "docs/reference/data-plane.md").read_text()
    page += (ROOT / "docs/how-to/measure-links.md").read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in names()}
    prefixes = ("splitinference_gateway_", "splitinference_segment_", "splitinference_")
    short = {next(name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix)): name for name in families}
    missing = [name for end, name in sorted(short.items()) if not re.search(rf"(?<![a-z]){re.escape(end)}\b", page)]
    assert ", ".join(missing) == ""


# --- rules -----------------------------------------------------------------------------------------------------------------------------


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    tools = programs()
    if isinstance(tools, str):
        pytest.skip(tools)
    return subprocess.run([tools["promtool"], *words], capture_output=True, text=True, check=False, timeout=120)


def test_prometheus_takes_the_rules(tmp_path: Path):
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump(spec()))
    done = promtool("check", "rules", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


OF = '{namespace="team", name="chat"'
GATEWAY = 'splitinference_gateway_requests_total{namespace="team", splitinference="chat", pod="g", code='
FIRST = "splitinference_%s_time_to_first_token_ms" + OF + "}"
LABELS = {"namespace": "team", "name": "chat"}
CASES: dict[str, tuple[list[tuple[str, str]], str, dict[str, str]]] = {
    "SplitinferenceErrorBudgetBurnsFast": (
        [(GATEWAY + '"200"}', "0+50x180"), (GATEWAY + '"503"}', "0+10x180")],
        "1h30m", {"namespace": "team", "splitinference": "chat"},
    ),
    "SplitinferenceErrorBudgetBurns": (
        [(GATEWAY + '"200"}', "0+990x600"), (GATEWAY + '"500"}', "0+10x600")],
        "8h", {"namespace": "team", "splitinference": "chat"},
    ),
    "SplitinferenceLatencyAboveSlo": (
        [(FIRST % "observed", "900x60 1500x60"), (FIRST % "slo", "1000x120")],
        "1h30m", {**LABELS, "slo": "timeToFirstToken"},
    ),
    "SplitinferenceNotReady": ([("splitinference_ready" + OF + "}", "1x5 0x30")], "15m", LABELS),
    "SplitinferenceSpecNotMet": (
        [("splitinference_condition" + OF + ', type="Stalled", status="True", reason="Infeasible"}', "1x30")],
        "15m", {**LABELS, "type": "Stalled", "status": "True", "reason": "Infeasible"},
    ),
    "SplitinferenceTransitionBlocked": (
        [("splitinference_condition" + OF + ', type="Progressing", status="False", reason="Blocked"}', "1x30")],
        "15m", {**LABELS, "type": "Progressing", "status": "False", "reason": "Blocked"},
    ),
    "SplitinferenceMetricsMissing": (
        [("splitinference_condition" + OF + ', type="MetricsAvailable", status="Unknown", reason="NoFigures"}', "1x30")],
        "20m", {**LABELS, "type": "MetricsAvailable", "status": "Unknown", "reason": "NoFigures"},
    ),
    "SplitinferencePredictionWrong": ([("splitinference_prediction_error" + OF + "}", "0.6x60")], "40m", LABELS),
    "SplitinferenceVerificationFailed": (
        [("splitinference_condition" + OF + ', type="Verified", status="False", reason="VerificationFailed"}', "1x5")],
        "2m", {**LABELS, "type": "Verified", "status": "False", "reason": "VerificationFailed"},
    ),
    "SplitinferenceNotVerified": (
        [("splitinference_condition" + OF + ', type="Verified", status="False", reason="NoRoomForVerifier"}', "1x30")],
        "20m", {**LABELS, "type": "Verified", "status": "False", "reason": "NoRoomForVerifier"},
    ),
    "SplitinferenceCertificateExpires": (
        # promtool's clock begins at 0: the certificate ends an hour after that
        [("splitinference_certificate_expiry_timestamp_seconds" + OF + ', role="gateway"}', "3600x60")],
        "15m", {**LABELS, "role": "gateway"},
    ),
    "SplitinferenceNoLeader": ([('splitinference_leader{namespace="ops", pod="o"}', "0x30")], "10m", {}),
    "SplitinferencePassesFail": (
        [('splitinference_passes_total{namespace="ops", pod="o", ended="failed"}', "0+1x60")],
        "40m", {"namespace": "ops", "pod": "o"},
    ),
}  # fmt: skip
QUIET = [
    (GATEWAY + '"200"}', "0+5000x600"), (GATEWAY + '"429"}', "0+500x600"), (GATEWAY + '"499"}', "0+500x600"),
    (GATEWAY + '"503"}', "0+1x600"),
    (FIRST % "observed", "900x600"), (FIRST % "slo", "1000x600"),
    ("splitinference_ready" + OF + "}", "1x600"),
    ("splitinference_condition" + OF + ', type="Progressing", status="False", reason="Settled"}', "1x600"),
    ("splitinference_condition" + OF + ', type="Planned", status="True", reason="Planned"}', "1x600"),
    ("splitinference_condition" + OF + ', type="MetricsAvailable", status="True", reason="Available"}', "1x600"),
    ("splitinference_condition" + OF + ', type="Verified", status="True", reason="SegmentsAreChecked"}', "1x600"),
    ("splitinference_condition" + OF + ', type="Verified", status="Unknown", reason="VerifierStarting"}', "1x600"),
    ("splitinference_prediction_error" + OF + "}", "0.3x600"),
    ("splitinference_certificate_expiry_timestamp_seconds" + OF + ', role="gateway"}', "86400x600"),
    ('splitinference_leader{namespace="ops", pod="o"}', "1x600"), ('splitinference_leader{namespace="ops", pod="p"}', "0x600"),
    ('splitinference_passes_total{namespace="ops", pod="o", ended="done"}', "0+9x600"),
    ('splitinference_passes_total{namespace="ops", pod="o", ended="failed"}', "1x600"),
]  # fmt: skip
"""All is well: also where a few requests failed, where clients went away or sent too much, and where one replica stands by."""


def played(tmp_path: Path, tests: list[dict[str, Any]]) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(spec()))
    content = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(content, sort_keys=False))
    done = promtool("test", "rules", str(tmp_path / "tests.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


def series(lines: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"series": name, "values": values} for name, values in lines]


def test_every_alert_is_played():
    assert set(CASES) == set(alerts())


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_with_its_labels(name: str, tmp_path: Path):
    lines, at, labels = CASES[name]
    severity = alerts()[name]["labels"]["severity"]
    # promtool compares annotations, too; here those that do not depend on the value are known, so only labels are asked for
    expression = f'count by ({", ".join(sorted(labels))}) (ALERTS{{alertname="{name}", alertstate="firing", severity="{severity}"}})'
    wanted = "{" + ", ".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
    sample = {"labels": wanted, "value": 1}
    played(
        tmp_path,
        [
            {
                "interval": "1m",
                "input_series": series(lines),
                "promql_expr_test": [{"expr": expression, "eval_time": at, "exp_samples": [sample]}],
            }
        ],
    )


def test_no_alert_fires_while_all_is_well(tmp_path: Path):
    checks = [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": at, "exp_samples": []} for at in ("20m", "1h30m", "9h")]
    played(tmp_path, [{"interval": "1m", "input_series": series(QUIET), "promql_expr_test": checks}])


def test_a_pause_of_a_minute_and_a_move_wake_nobody(tmp_path: Path):
    """A resource that is not Ready for a short while, and a transition that is blocked until another plan is made."""
    lines = [
        ("splitinference_ready" + OF + "}", "1x5 0x3 1x30"),
        ("splitinference_condition" + OF + ', type="Progressing", status="False", reason="Blocked"}', "1x5 stale"),
        ('splitinference_leader{namespace="ops", pod="o"}', "1x60"),
    ]
    checks = [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{minute}m", "exp_samples": []} for minute in range(1, 30)]
    played(tmp_path, [{"interval": "1m", "input_series": series(lines), "promql_expr_test": checks}])


def test_what_is_not_there_is_no_alert_but_the_leader(tmp_path: Path):
    """An installation without resources, or whose Prometheus scrapes nothing."""
    sample = {"labels": 'ALERTS{alertname="SplitinferenceNoLeader", alertstate="firing", severity="critical"}', "value": 1}
    checks = [{"expr": 'ALERTS{alertstate="firing"}', "eval_time": "30m", "exp_samples": [sample]}]
    played(tmp_path, [{"interval": "1m", "input_series": [], "promql_expr_test": checks}])


def test_budgets_are_the_values():
    text = json.dumps(rules("prometheusRule.availabilityPercent=99", "prometheusRule.latencyPercent=90"))
    assert "14.4 * (1 - 99 / 100)" in text
    assert "(1 - 90 / 100)" in text
    assert "@" not in text
    assert run("template", "si", str(CHART), "--set", "prometheusRule.availabilityPercent=100").returncode != 0, (
        "no error is allowed: no budget"
    )


@pytest.mark.parametrize("name", CASES)
def test_every_alert_has_a_runbook(name: str):
    about = alerts()[name]["annotations"]
    page = (ROOT / about["runbook"]).read_text()
    assert name in page
    for part in ("## What it means", "## What to look at", "## What to do"):
        assert part in page
    url = alerts("prometheusRule.runbookUrl=https://docs.example.com/runbooks/")[name]["annotations"]["runbook_url"]
    assert url == f"https://docs.example.com/runbooks/{Path(about['runbook']).stem}"


# --- dashboard -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """With ten scrapes, 15 seconds apart, of programs that work."""
    working, now = Programs(), time.time()
    scraped: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for number in range(10):
        working.work()
        at = now - 15 * (10 - number)
        for sample in working.samples():
            scraped.setdefault(sample[:2], []).append(line(sample, at))
    with serving_samples((text for lines in scraped.values() for text in lines), tmp_path_factory.mktemp("prometheus")) as url:
        yield url


def answer(url: str, expression: str) -> list[dict[str, Any]]:
    query = urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=30) as found:
        result: list[dict[str, Any]] = json.load(found)["data"]["result"]
    return result


@pytest.mark.parametrize(("title", "expression"), queries(), ids=lambda text: str(text)[:50])
def test_a_query_of_the_dashboard_has_an_answer(prometheus: str, title: str, expression: str):
    found = answer(prometheus, given(expression))
    assert found, f"{title}: no series"
    legend = [
        target["legendFormat"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ()) if target["expr"] == expression
    ]
    for label in re.findall(r"{{(\w+)}}", " ".join(legend)):
        assert all(label in series["metric"] for series in found), f"{title}: the legend names {label}"


def test_the_dashboard_can_be_put_onto_any_grafana():
    assert DASHBOARD["uid"] == "splitinference"
    boxes = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [(x, y) for box in boxes for x in range(box["x"], box["x"] + box["w"]) for y in range(box["y"], box["y"] + box["h"])]
    assert len(cells) == len(set(cells)), "panels lie over each other"
    assert all(x < 24 for x, _ in cells)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())} == {"${datasource}"}


def test_the_dashboard_is_a_configmap_that_grafana_finds():
    assert not [obj for obj in render() if obj["kind"] == "ConfigMap"]
    found = only("ConfigMap", "dashboard.enabled=true", "dashboard.namespace=grafana", "dashboard.annotations.grafana_folder=Models")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["namespace"] == "grafana"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Models"}
    assert json.loads(found["data"]["splitinference.json"]) == DASHBOARD
