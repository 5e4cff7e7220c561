"""approve and reject, drain, and logs against a server in the role of the API server: what they send, and what they print."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitinference.cli.live import answer, drain, logs
from splitinference.cli.main import main
from tests.adapters.serving import Request, Response
from tests.cli.pretend_api import GROUP, api_server, items, refusal
from tests.view.test_view import a_pod

CHAT = f"{GROUP}/namespaces/team/splitinferences/chat"
PODS = "/api/v1/namespaces/team/pods"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(drain, "_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(logs, "_LOOK_SECONDS", 0.01)


def as_json(found: Any) -> Response:
    return Response(json.dumps(found).encode(), 200, {"Content-Type": "application/json"})


def a_resource(**status: Any) -> dict[str, Any]:
    about = {"name": "chat", "namespace": "team", "resourceVersion": "7"}
    return {"metadata": about, "spec": {"adaptation": {"mode": "Advisory"}}, "status": status}


PROPOSAL = {"revision": "bbbbbbbbbb", "id": "bbbbbbbbbb-20260101T000000Z", "from": "aaaaaaaaaa", "message": "better"}


def operator(after: dict[str, Any]) -> tuple[Callable[[Request], Response], list[dict[str, Any]]]:
    """A resource with an offer; once it is annotated, an operator answers with the status `after`."""
    written: list[dict[str, Any]] = []

    def respond(request: Request) -> Response:
        if request.method == "PATCH":
            written.append(json.loads(request.body))
        return as_json(a_resource(**after) if written else a_resource(proposal=PROPOSAL, plan={"revision": "aaaaaaaaaa"}))

    return respond, written


def test_approving_names_the_offer_and_the_version_that_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    adopted = {"plan": {"revision": "bbbbbbbbbb"}, "decisions": [{"reason": "Approved", "message": "net gain 12%"}]}
    respond, written = operator(adopted)
    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["approve", "chat", "--kubeconfig", path]) == 0
    annotations = {"splitinference.dev/approve": PROPOSAL["id"], "splitinference.dev/reject": None}
    assert written == [{"metadata": {"annotations": annotations, "resourceVersion": "7"}}]
    assert "The operator: Approved: net gain 12%" in capsys.readouterr().out


def test_an_approval_that_the_operator_does_not_take_fails_with_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    respond, _ = operator({"plan": {"revision": "aaaaaaaaaa"}, "decisions": [{"reason": "ApprovalVoid", "message": "no longer better"}]})
    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["approve", "chat", "--kubeconfig", path]) == 1
    assert "ApprovalVoid: no longer better" in capsys.readouterr().out


def test_rejecting_is_done_when_the_offer_is_gone(tmp_path: Path):
    respond, written = operator({"decisions": [{"reason": "Rejected", "message": "…"}]})
    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["reject", "chat", "--kubeconfig", path]) == 0
    assert written[0]["metadata"]["annotations"]["splitinference.dev/reject"] == PROPOSAL["id"]


def test_another_plan_than_the_one_that_was_looked_at_is_not_approved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    respond, written = operator({})
    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["approve", "chat", "--revision", "cccccccccc", "--kubeconfig", path]) == 1
    assert not written
    assert "The proposed plan is bbbbbbbbbb now, not cccccccccc." in capsys.readouterr().err


def test_a_resource_that_changed_meanwhile_is_not_approved(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def respond(request: Request) -> Response:
        return (
            refusal(409, "the object has been modified", "Conflict")
            if request.method == "PATCH"
            else as_json(a_resource(proposal=PROPOSAL))
        )

    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["approve", "chat", "--kubeconfig", path]) == 1
    assert "was changed meanwhile" in capsys.readouterr().err


def test_an_operator_that_does_not_answer_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with api_server(tmp_path, {CHAT: lambda _: as_json(a_resource(proposal=PROPOSAL))}) as (path, _):
        assert main(["approve", "chat", "--wait", "0.05", "--kubeconfig", path]) == 1
    assert "kubectl split doctor" in capsys.readouterr().err


def test_in_another_mode_nothing_is_proposed_and_the_mode_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    body = {**a_resource(), "spec": {"adaptation": {"mode": "Auto"}}}
    with api_server(tmp_path, {CHAT: body}) as (path, _):
        assert main(["approve", "chat", "--kubeconfig", path]) == 1
    said = capsys.readouterr().err
    assert "chat has mode Auto" in said
    assert "kubectl patch si chat" in said


# --- drain -----------------------------------------------------------------------------------------------------------------------------


class Cluster:
    """One node with a segment; the segment leaves some looks after the node was cordoned."""

    def __init__(self, **node: Any) -> None:
        self.node: dict[str, Any] = {"metadata": {"name": "n1", "resourceVersion": "3"}, "spec": {}, **node}
        self.patches: list[dict[str, Any]] = []
        self.looks = 3

    def answers(self) -> dict[str, Any]:
        return {
            "/api/v1/nodes/n1": self._node,
            "/api/v1/nodes": items({"metadata": {"name": "n1"}}),
            "/api/v1/pods": self._pods,
            CHAT: a_resource(conditions=[{"type": "Progressing", "reason": "Blocked", "message": "no room on n2"}]),
            f"{GROUP}/splitinferences": items(a_resource()),
        }

    def _node(self, request: Request) -> Response:
        if request.method == "PATCH":
            self.patches.append(json.loads(request.body))
            self.node["spec"] = {"unschedulable": True}
        return as_json(self.node)

    def _pods(self, _: Request) -> Response:
        self.looks -= bool(self.patches)
        return as_json(items(*([a_pod("chat-0-4", "0-4", "n1")] if self.looks > 0 else []), a_pod("chat-4-8", "4-8", "n2")))


def planned(monkeypatch: pytest.MonkeyPatch, good: bool) -> None:
    monkeypatch.setattr(drain, "_plan_without", lambda *_: (good, "n2[0:8]" if good else "there is no plan without n1: n2 has 3 MiB"))


def test_drain_plans_first_cordons_and_waits_until_nothing_of_ours_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    planned(monkeypatch, good=True)
    cluster = Cluster()
    with api_server(tmp_path, cluster.answers()) as (path, _):
        assert main(["drain", "n1", "--kubeconfig", path]) == 0
    (patch,) = cluster.patches
    assert patch["spec"] == {"unschedulable": True}
    assert "splitinference.dev/drained" in patch["metadata"]["annotations"]
    said = capsys.readouterr().out
    assert (
        said.index("team/chat: n2[0:8]")
        < said.index("n1 is cordoned")
        < said.index("still on n1: chat-0-4")
        < said.index("Nothing of ours")
    )


def test_a_resource_without_another_plan_stops_the_drain_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    planned(monkeypatch, good=False)
    cluster = Cluster()
    with api_server(tmp_path, cluster.answers()) as (path, _):
        assert main(["drain", "n1", "--kubeconfig", path]) == 1
        assert not cluster.patches
        assert "there is no plan without n1: n2 has 3 MiB" in capsys.readouterr().err
        assert main(["drain", "n1", "--force", "--kubeconfig", path]) == 0
    assert cluster.patches


def test_a_dry_run_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    planned(monkeypatch, good=True)
    cluster = Cluster()
    with api_server(tmp_path, cluster.answers()) as (path, _):
        assert main(["drain", "n1", "--dry-run", "--kubeconfig", path]) == 0
    assert not cluster.patches


def test_who_waits_in_vain_is_told_what_is_there_and_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    planned(monkeypatch, good=True)
    cluster = Cluster()
    cluster.looks = 10**9
    with api_server(tmp_path, cluster.answers()) as (path, _):
        assert main(["drain", "n1", "--timeout", "0.1", "--kubeconfig", path]) == 1
    said = capsys.readouterr().err
    assert "After 0.1 s there still is: chat-0-4. team/chat: Blocked: no room on n2" in said


def test_undo_takes_back_what_this_command_did_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    mine = {"metadata": {"name": "n1", "resourceVersion": "3", "annotations": {drain.MARK: "x"}}, "spec": {"unschedulable": True}}
    cluster = Cluster(**mine)
    with api_server(tmp_path, cluster.answers()) as (path, _):
        assert main(["drain", "n1", "--undo", "--kubeconfig", path]) == 0
        cordoned = {"metadata": {"annotations": {drain.MARK: None}, "resourceVersion": "3"}, "spec": {"unschedulable": None}}
        assert cluster.patches == [cordoned]
        cluster.patches.clear()
        cluster.node = {"metadata": {"name": "n1", "resourceVersion": "3"}, "spec": {"unschedulable": True}}
        assert main(["drain", "n1", "--undo", "--kubeconfig", path]) == 1
        assert "cordoned by somebody else" in capsys.readouterr().err
        cluster.node = {"metadata": {"name": "n1", "resourceVersion": "3"}, "spec": {}}
        assert main(["drain", "n1", "--undo", "--kubeconfig", path]) == 1
        assert not cluster.patches


# --- logs ------------------------------------------------------------------------------------------------------------------------------


def log_of(*lines: str) -> Response:
    return Response("".join(f"2026-01-01T00:00:{line}\n" for line in lines).encode(), 200, {"Content-Type": "text/plain"})


def running(name: str, layers: str, node: str, component: str = "segment", **more: Any) -> dict[str, Any]:
    pod = a_pod(name, layers, node, component, **more)
    if not layers:
        del pod["metadata"]["labels"]["splitinference.dev/layers"]
    return pod


def logging(*pods: dict[str, Any], **logs: Response) -> dict[str, Any]:
    answers = {f"{PODS}/{name.replace('_', '-')}/log": log for name, log in logs.items()}
    return {CHAT: a_resource(), PODS: items(*pods), **answers}


def test_logs_are_merged_by_time_with_who_wrote_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    pods = [running("s1", "4-8", "b"), running("s0", "0-4", "a"), running("gw", "", "a", "gateway")]
    answers = logging(*pods, s0=log_of("01Z first", "05Z \x1b[31mred"), s1=log_of("03Z third"), gw=log_of("02Z second", "04Z fourth"))
    with api_server(tmp_path, answers) as (path, asked):
        assert main(["logs", "chat", "--tail", "7", "--since", "1h30m", "--kubeconfig", path]) == 0
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "0:4 a     | first", "gateway a | second", "4:8 b     | third", "gateway a | fourth", "0:4 a     | \ufffd[31mred",
    ]  # fmt: skip
    query = next(request.path for request in asked if "/s0/log" in request.path)
    assert "tailLines=7" in query
    assert "sinceSeconds=5400" in query


ID, OTHER = "0af7651916cd43dd8448eb211c80319c", "b" * 32


def as_logged(request: str, text: str, **more: str) -> str:
    return json.dumps({"level": "INFO", "message": text, "request_id": request, **more})


@pytest.mark.parametrize("asked_for", [ID, "order-17"])
def test_one_request_is_followed_from_the_gateway_to_the_last_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str], asked_for: str):
    pods = [running("s1", "4-8", "b"), running("s0", "0-4", "a"), running("gw", "", "a", "gateway")]
    gateway = log_of("06Z " + as_logged(ID, "ended", client_request_id="order-17"), "07Z " + as_logged(OTHER, "about order-17"))
    first = log_of("02Z " + as_logged(ID, "begins"), "03Z " + as_logged(OTHER, "begins"), "04Z I1201 of Triton")
    last = log_of(f"05Z 2026-01-01 INFO x {ID} step begins", f"05Z 2026-01-01 INFO x {OTHER} step begins")
    with api_server(tmp_path, logging(*pods, gw=gateway, s0=first, s1=last)) as (path, asked):
        assert main(["logs", "chat", "--request", asked_for, "--kubeconfig", path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[0].strip() for line in lines] == ["0:4 a", "4:8 b", "gateway a"]
    assert all(ID in line for line in lines)
    assert not any("tailLines" in request.path for request in asked), "all lines are looked through"


def test_a_request_that_no_line_is_about_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with api_server(tmp_path, logging(running("s0", "0-4", "a"), s0=log_of("01Z {not json", f"02Z x{ID}"))) as (path, _):
        assert main(["logs", "chat", "--request", ID, "--kubeconfig", path]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"No line is about the request {ID}" in said.err


@pytest.mark.parametrize("wrong", ["", "two words", "x" * 129, "\x1b[31m"])
def test_an_id_that_no_header_can_have_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]):
    assert main(["logs", "chat", f"--request={wrong}"]) == 2
    assert "X-Request-Id" in capsys.readouterr().err


def test_a_pod_whose_log_cannot_be_read_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    gone = refusal(500, "no preferred addresses found", "InternalError")
    with api_server(tmp_path, logging(running("s0", "0-4", "a"), running("s1", "4-8", "b"), s0=log_of("01Z here"), s1=gone)) as (path, _):
        assert main(["logs", "chat", "--kubeconfig", path]) == 0
    said = capsys.readouterr()
    assert "| here" in said.out
    assert "s1: " in said.err
    assert "no preferred addresses found" in said.err


def test_a_sidecar_that_others_added_is_not_read(tmp_path: Path):
    pod = running("s0", "0-4", "a")
    pod["spec"]["containers"] = [{"name": "istio-proxy"}, {"name": "segment"}]
    with api_server(tmp_path, logging(pod, s0=log_of("01Z x"))) as (path, asked):
        assert main(["logs", "chat", "--kubeconfig", path]) == 0
    assert any("container=segment" in request.path for request in asked)


def test_without_pods_there_is_nothing_to_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with api_server(tmp_path, logging()) as (path, _):
        assert main(["logs", "chat", "--kubeconfig", path]) == 1
    assert "has no pods whose logs could be read" in capsys.readouterr().err


def test_following_takes_in_segments_that_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    looks = []

    def pods(_: Request) -> Response:
        looks.append(1)
        return as_json(items(running("s0", "0-4", "a"), *([running("s1", "4-8", "b")] if len(looks) > 3 else [])))

    def seen(printer: logs.Printer, source: logs.Source, line: str) -> None:
        lines.append((source.label, line))
        if any(label == "4:8 b" for label, _ in lines):
            raise KeyboardInterrupt

    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(logs.Printer, "line", seen)
    answers = {**logging(s0=log_of("01Z one"), s1=log_of("02Z two")), PODS: pods}
    with api_server(tmp_path, answers) as (path, asked):
        assert main(["logs", "chat", "-f", "--kubeconfig", path]) == 130
    assert ("0:4 a", "2026-01-01T00:00:01Z one") in lines
    assert any("follow=true" in request.path and "/s1/log" in request.path for request in asked)


@pytest.mark.parametrize("since", ["5", "x", "", "1d", "0s", "-5m"])
def test_a_duration_that_is_none_is_refused_with_what_is_expected(since: str, capsys: pytest.CaptureFixture[str]):
    assert main(["logs", "chat", f"--since={since}"]) == 2
    assert "expected a duration such as 90s, 5m or 1h30m" in capsys.readouterr().err


# --- watch -----------------------------------------------------------------------------------------------------------------------------


def test_watching_prints_each_change_once_and_goes_on_when_the_server_is_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    shown = ["a", "a", "b", None, "c"]
    looks: list[int] = []

    def respond(_: Request) -> Response:
        message = shown[len(looks)]
        if message is None:
            return refusal(503, "starting", "ServiceUnavailable")
        return as_json(a_resource(decisions=[{"reason": "Advised", "message": f"<{message}>"}]))

    def sleeps(_: float) -> None:
        looks.append(1)
        if len(looks) == len(shown):
            raise KeyboardInterrupt

    monkeypatch.setattr("splitinference.cli.printing.output.time.sleep", sleeps)
    with api_server(tmp_path, {CHAT: respond}) as (path, _):
        assert main(["history", "chat", "--watch", "--kubeconfig", path]) == 130
    out = capsys.readouterr().out
    assert [part for part in ("<a>", "<b>", "<c>") if out.count(part) == 1] == ["<a>", "<b>", "<c>"]
    assert "with 503: starting" in out
