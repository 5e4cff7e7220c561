"""status, explain, history and diff: what they print of a resource."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from splitinference.cli.live import diff, explain, history, status
from splitinference.cli.printing.drawing import Pen, stage_lines
from splitinference.cli.printing.output import put
from splitinference.view import ResourceView, read, read_nodes
from tests.view.test_view import a_pod, a_route, a_segment

FIRST = a_segment("chat-0-12-ab", 0, 12, "a", weightMiB=54.0, kvMiB=3.0, predictedMs=11.24)
SECOND = a_segment("chat-12-32-cd", 12, 32, "node-b", weightMiB=90.0, kvMiB=5.0, predictedMs=20.0, phase="Starting")
PLAN = {"revision": "9c0ffee123", "segments": [FIRST, SECOND], "optimal": False, "value": 242.8, "bound": 230.0, "gap": 0.0527}
PLAN |= {"explanation": ["latency: 243 ms", "layers [0, 12) on a: 11 ms", "spare left: 100 MiB free", "and 970 more nodes left"]}
OBSERVED = {"revision": "9c0ffee123", "stages": {"chat-0-12-ab": {"computeMs": 12.5, "queueMs": 3.1, "linkMs": 0.7, "batch": 1.44}}}
OBSERVED |= {"requests": 41, "failed": 0, "windowSeconds": 60, "tokensPerSecond": 24.31, "kvReserved": 0.125}
DECISION = {"time": "2026-01-01T00:00:00Z", "transition": "migration", "reason": "UtilizationShifted", "revision": "9c0ffee123"}
DECISION |= {"message": "node-b at 93 % [limit 85 %]", "outcome": {"latencyMs": 29}}
KEPT = {"time": "2026-01-01T01:00:00Z", "transition": "keep", "reason": "GainTooSmall", "message": "net gain 2%", "revision": "9c0ffee123"}
CONDITIONS = [
    {"type": "Ready", "status": "True", "reason": "Serving", "message": ""},
    {"type": "Progressing", "status": "False", "reason": "Done", "message": ""},
    {"type": "MetricsAvailable", "status": "False", "reason": "MetricsUnavailable", "message": "no Prometheus"},
]
PROPOSAL = {"revision": "abc1234567", "id": "abc1234567-x", "from": "9c0ffee123", "message": "12 % better", "time": "2026-01-01T02:00:00Z"}
PROPOSAL |= {"segments": [FIRST, a_segment("chat-12-32-ef", 12, 32, "spare", phase="Missing")]}


def a_view(pods: Any = (), routes: Any = (), **changes: Any) -> ResourceView:
    whole = {
        "plan": PLAN,
        "observed": OBSERVED,
        "decisions": [KEPT, DECISION],
        "conditions": CONDITIONS,
        "segments": "1/2",
        "predicted": "1.4s",
    }
    spec = {"adaptation": {"mode": "Advisory"}}
    return read({"metadata": {"namespace": "team", "name": "chat"}, "spec": spec, "status": {**whole, **changes}}, pods, routes)


def printed(lines: Any, width: int = 200, tty: bool = False) -> str:
    out = io.StringIO()
    to = Console(file=out, width=width, highlight=False, markup=False, force_terminal=tty, color_system=None, legacy_windows=False)
    for line in lines:
        put(to, line)
    return out.getvalue()


def test_the_pipeline_is_drawn_with_layers_nodes_and_both_times():
    text = printed(status.lines(a_view(), Pen(200)))
    first = next(line for line in text.splitlines() if " layers 0:12 " in line)
    assert first.split() == ["●", "layers", "0:12", "█" * 12 + "·" * 20, "a", "54", "MiB", "+3", "KV", "11.2", "→", "12.5", "ms"]
    second = next(line for line in text.splitlines() if "layers 12:32" in line)
    assert "·" * 12 + "█" * 20 in second
    assert second.startswith("  ◐")
    assert second.endswith("Starting")
    assert "  │ 0.5 → 0.7 ms\n" in text
    assert "  ╰─▶ token 0.5 ms\n" in text
    assert "  41 requests in 60 s, 0 failed, 24.3 tokens/s, 12% of the KV reserved\n" in text
    assert "at most 5.3% from the best" in text


def test_conditions_that_are_as_they_should_be_are_not_said():
    text = printed(status.lines(a_view(), Pen(200)))
    assert "MetricsAvailable is False: MetricsUnavailable: no Prometheus" in text
    assert "Progressing" not in text


def test_an_output_that_takes_no_box_characters_gets_ascii():
    printed(status.lines(a_view(proposal=PROPOSAL), Pen(200, fancy=False))).replace("→", "").encode("ascii")


@pytest.mark.parametrize("width", [20, 40, 80, 81, 120, 1000])
def test_no_name_is_cut_short_however_narrow_the_terminal(width):
    long = "gpu-node-with-a-very-long-name.internal.example"
    plan = {**PLAN, "segments": [{**FIRST, "node": long}, SECOND]}
    text = printed(status.lines(a_view(plan=plan), Pen(width)), width)
    assert long in text
    assert "54 MiB +3 KV  11.2 → 12.5 ms" in text


def test_figures_get_a_line_of_their_own_where_80_columns_are_too_few():
    plan = {**PLAN, "segments": [{**FIRST, "node": "n" * 30}, SECOND]}
    drawn = printed(status.lines(a_view(plan=plan), Pen(80)), 80).split("gateway")[1].splitlines()[:8]
    assert max(map(len, drawn)) <= 80
    assert drawn[3].startswith("  │")
    assert drawn[3].endswith("54 MiB +3 KV  11.2 → 12.5 ms")


def test_in_a_terminal_long_words_are_indented_below_and_for_programs_a_line_stays_one():
    line = Text("  Ready is False: " + "word " * 40)
    wrapped = printed([line], 80, tty=True).splitlines()
    assert len(wrapped) > 1
    assert all(part.startswith("      ") for part in wrapped[1:])
    assert len(printed([line], 80).splitlines()) == 1


def test_several_pipelines_are_drawn_one_below_the_other():
    plan = {**PLAN, "segments": [FIRST, SECOND, a_segment("x", 0, 32, "c", 1)]}
    text = printed(status.lines(a_view(plan=plan), Pen(120)))
    assert text.index("(pipeline 0)") < text.index("(pipeline 1)")


def test_a_move_shows_what_serves_what_goes_where_and_what_is_waited_for():
    pods = [a_pod("chat-0-12-ab", "0-12", "a"), a_pod("chat-old", "12-32", "old")]
    move = {"from": "0ld", "to": "9c0ffee123", "steps": ["create chat-12-32-cd on node-b"], "waiting": ["chat-12-32-cd is starting"]}
    view = a_view(pods, [a_route(["chat-0-12-ab", "chat-old"])], transition=move)
    text = printed(status.lines(view, Pen(120)))
    assert "moving 0ld → 9c0ffee123" in text
    assert "move    layers 12:32  old → node-b  (90 MiB)" in text
    assert "waits: chat-12-32-cd is starting" in text
    drawn = text[text.index("gateway") : text.index("moving")]
    assert " old" in drawn, "what serves is drawn, not what comes"
    assert "node-b" not in drawn


def test_a_move_is_no_trouble_and_said_once():
    waiting = "chat-old on old drains: 3 in flight"
    conditions = [{"type": kind, "status": "True", "reason": "Transition", "message": waiting} for kind in ("Progressing", "Reconciling")]
    move = {"from": "9c0ffee123", "to": "9c0ffee123", "waiting": [waiting]}
    text = printed(status.lines(a_view(transition=move, conditions=conditions), Pen(120)))
    assert text.count(waiting) == 1
    assert "the plan serves; what it replaced leaves" in text
    blocked = [{"type": "Progressing", "status": "True", "reason": "Refused", "message": "quota"}]
    assert "Refused: quota" in printed(status.lines(a_view(transition=move, conditions=blocked), Pen(120)))


def test_every_figure_of_a_segment_is_in_the_wide_table():
    view = a_view(calibration={"nodes": {"a": {"factor": 1.96}}, "stages": {"chat-0-12-ab": {"predictedMs": 12.1}}})
    assert view.plan is not None
    row = printed(stage_lines(view.plan)).splitlines()[1]
    assert " ".join(row.split()) == "chat-0-12-ab 0:12 a 54 MiB 3 MiB 12.1 ms 12.5 ms 1.4 3.1 ms 0.5 ms 0.7 ms 1.96 Proven"


def test_what_was_learned_is_said():
    view = a_view(calibration={"errorPercent": 3.2, "uncalibratedErrorPercent": 50.4}, adaptation={"paid": 2, "unpaid": 1})
    text = printed(status.lines(view, Pen(120)))
    assert "off by 3.2 % in the mean, without the nodes' factors by 50.4 %" in text
    assert "of 3 moves that promised quicker tokens, 2 paid" in text


def test_of_1000_nodes_only_ours_are_listed_unless_asked():
    from splitinference.cli.printing.drawing import node_lines

    nodes = read_nodes([{"metadata": {"name": f"n{i:04}"}} for i in range(1000)], [a_pod("chat-0-12-ab", "0-12", "n0007")])
    assert [line.plain.split()[0] for line in node_lines(nodes, wide=False)] == ["NODE", "n0007"]
    assert len(list(node_lines(nodes, wide=True))) == 1001


def test_explain_answers_four_questions():
    found = explain.answers(a_view(proposal=PROPOSAL))
    assert "layers [0, 12) on a: 11 ms" in found["whyHere"]
    assert "value 242.80, no plan can be better than 230.00: so it is at most 5.3% from the best" in found["whyHere"]
    assert found["whyNotThere"] == ("spare left: 100 MiB free", "and 970 more nodes left")
    assert found["whyNow"] == ("made at 2026-01-01T00:00:00Z because of UtilizationShifted: node-b at 93 % [limit 85 %]",)
    assert "2026-01-01T01:00:00Z GainTooSmall: net gain 2%" in found["whyNot"]
    assert any("abc1234567 waits for an answer" in line for line in found["whyNot"])


def test_explain_says_why_there_is_no_plan():
    rejected = {"type": "Accepted", "status": "False", "reason": "ModelUnreadable", "message": "no config.json"}
    assert "ModelUnreadable: no config.json" in printed(explain.lines(a_view(plan=None, conditions=[rejected])))


def test_explain_of_a_node_says_why_it_has_nothing():
    node = {"metadata": {"name": "spare"}, "spec": {"unschedulable": True, "taints": [{"key": "k", "effect": "NoSchedule"}]}}
    text = printed(explain.of_node(a_view(), read_nodes([node])[0]))
    assert "spare left: 100 MiB free" in text
    assert "it is cordoned" in text
    assert "it has the taint k:NoSchedule" in text
    other = printed(explain.of_node(a_view(), read_nodes([{"metadata": {"name": "n9"}}])[0]))
    assert "not among the first nodes that the plan explains" in other


def test_history_shows_reason_words_and_what_came_of_it():
    text = printed(history.lines(a_view()))
    assert "2026-01-01T00:00:00Z  migration  UtilizationShifted  9c0ffee123" in text
    assert "node-b at 93 % [limit 85 %]" in text
    assert "outcome: latencyMs 29" in text


def test_diff_shows_both_plans_and_what_lies_between():
    view = a_view(proposal=PROPOSAL)
    pair = diff.compared(view)
    assert pair is not None
    text = printed(diff.lines(view, *pair, Pen(120)))
    assert "serving 9c0ffee123" in text
    assert "proposed abc1234567" in text
    assert "stay    layers  0:12  a" in text
    assert "move    layers 12:32  node-b → spare" in text
    assert "kubectl split approve chat" in text
    assert "New" in text
    assert diff.compared(a_view()) is None


@pytest.mark.parametrize("shown", [lambda v: status.lines(v, Pen(80)), history.lines, explain.lines])
def test_a_resource_that_the_operator_has_not_seen_is_shown(shown):
    assert "team/chat" in printed(shown(read({"metadata": {"namespace": "team", "name": "chat"}})))
