"""status, history and explain: what they print of a resource, and what they say where there is nothing."""

import argparse
import io
from typing import Any

import pytest
from rich.console import Console

from splitinference.cli import explain, history, status

SEGMENT = {"name": "chat-0-12-ab", "pipeline": 0, "start": 0, "end": 12, "node": "a", "weightMiB": 54.0, "kvMiB": 3.0}
SEGMENT |= {"predictedMs": 11.24, "linkMs": 0.5, "phase": "Serving"}
PLAN = {"revision": "9c0ffee123", "segments": [SEGMENT], "optimal": False, "value": 242.8, "bound": 230.0, "gap": 0.0527}
PLAN |= {"explanation": ["layers [0, 12) on a: 11 ms"]}
OBSERVED = {"revision": "9c0ffee123", "stages": {"chat-0-12-ab": {"computeMs": 12.5, "queueMs": 3.1, "linkMs": 0.7, "batch": 1.44}}}
OBSERVED |= {"requests": 41, "failed": 0, "windowSeconds": 60, "tokensPerSecond": 24.31, "kvReserved": 0.125}
DECISION = {"time": "2026-01-01T00:00:00Z", "transition": "migrate", "reason": "NodeBusy", "revision": "9c0ffee123"}
DECISION |= {"message": "node-b at 93 % [limit 85 %]", "outcome": {"latencyMs": 29}}
CONDITIONS = [
    {"type": "Ready", "status": "True", "reason": "Serving", "message": ""},
    {"type": "Progressing", "status": "False", "reason": "Done", "message": ""},
    {"type": "MetricsAvailable", "status": "False", "reason": "MetricsUnavailable", "message": "no Prometheus"},
]


def a_resource(**changes: Any) -> dict[str, Any]:
    whole = {"plan": PLAN, "observed": OBSERVED, "decisions": [DECISION], "conditions": CONDITIONS, "segments": "1/1", "predicted": "1.4s"}
    return {"metadata": {"namespace": "team", "name": "chat"}, "status": {**whole, **changes}}


def printed(command: Any, resource: dict[str, Any]) -> str:
    out = io.StringIO()
    command.show(resource, Console(file=out, width=200))
    return out.getvalue()


def test_status_shows_predicted_and_observed_side_by_side():
    text = printed(status, a_resource())
    row = next(line for line in text.splitlines() if "chat-0-12-ab" in line)
    assert row.split() == [
        "chat-0-12-ab",
        "0:12",
        "a",
        "54",
        "MiB",
        "3",
        "MiB",
        "11.2",
        "ms",
        "12.5",
        "ms",
        "1.4",
        "3.1",
        "ms",
        "0.5",
        "ms",
        "0.7",
        "ms",
        "-",
        "Serving",
    ]
    assert "  41 requests in 60 s, 0 failed, 24.3 tokens/s, 12% of the KV reserved\n" in text
    assert "team/chat" in text
    assert "at most 5.3% from the best" in text


def test_status_says_nothing_of_requests_of_another_plan():
    assert "requests in" not in printed(status, a_resource(observed={**OBSERVED, "revision": "0ddba11"}))


def test_status_shows_what_was_learned_of_the_nodes_and_how_far_off_predictions_are():
    calibration = {
        "stages": {"chat-0-12-ab": {"node": "a", "observedMs": 12.5, "predictedMs": 12.1, "uncalibratedMs": 6.2}},
        "nodes": {"a": {"factor": 1.96, "windows": 7, "time": "2026-01-01T00:00:00Z"}},
        "errorPercent": 3.2,
        "uncalibratedErrorPercent": 50.4,
    }
    text = printed(status, a_resource(calibration=calibration, adaptation={"paid": 2, "unpaid": 1}))
    row = next(line for line in text.splitlines() if "chat-0-12-ab" in line)
    assert "12.1 ms" in row, "predicted for the node as it is, not as it was when the plan was made"
    assert "1.96" in row
    assert "off by 3.2 % in the mean, without the nodes' factors by 50.4 %" in text
    assert "of 3 moves that promised quicker tokens, 2 paid" in text


def test_the_table_is_not_cut_where_a_terminal_is_narrow():
    out = io.StringIO()
    status.show(a_resource(), Console(file=out, width=60))
    row = next(line for line in out.getvalue().splitlines() if "chat-0-12-ab" in line)
    assert row.endswith("Serving")


def test_status_leaves_out_what_was_observed_of_another_plan():
    text = printed(status, a_resource(observed={**OBSERVED, "revision": "old"}))
    assert "12.5 ms" not in text


def test_status_says_only_conditions_that_are_not_as_they_should_be():
    text = printed(status, a_resource())
    assert "MetricsAvailable is False: MetricsUnavailable: no Prometheus" in text
    assert "Progressing" not in text


def test_history_shows_reason_words_and_what_came_of_it():
    text = printed(history, a_resource())
    assert "2026-01-01T00:00:00Z  migrate  NodeBusy  9c0ffee123" in text
    assert "node-b at 93 % [limit 85 %]" in text
    assert "outcome: latencyMs 29" in text


def test_explain_shows_the_planners_words_and_the_proof():
    text = printed(explain, a_resource())
    assert "layers [0, 12) on a: 11 ms" in text
    assert "value 242.80, no plan can be better than 230.00: so it is at most 5.3% from the best" in text
    assert "because of NodeBusy" in text


def test_explain_says_why_there_is_no_plan():
    rejected = {"type": "Accepted", "status": "False", "reason": "ModelUnreadable", "message": "no config.json"}
    assert "ModelUnreadable: no config.json" in printed(explain, a_resource(plan=None, conditions=[rejected]))


@pytest.mark.parametrize("command", [status, history, explain])
def test_a_resource_that_the_operator_has_not_seen_is_shown(command):
    assert "team/chat" in printed(command, {"metadata": {"namespace": "team", "name": "chat"}})


@pytest.mark.parametrize("command", [status, history, explain])
def test_no_cluster_is_said_in_a_sentence(command, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    name = command.__name__.rpartition(".")[2]
    args = parser.parse_args([name, "chat", "--kubeconfig", str(tmp_path / "none")])
    assert args.run(args) == 1
    assert "usable kubeconfig" in capsys.readouterr().err
