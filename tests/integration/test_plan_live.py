"""`kubectl split plan -f` against a real API server, with a server in the role of Prometheus: what the planner would do here, and why."""

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from kubernetes import client

from splitinference.cli.main import main
from tests.adapters.serving import Request, Response, serving
from tests.core.planner_problems import a_profile
from tests.integration.conftest import a_resource

LABEL = "splitinference.dev/plan-test"


@pytest.fixture
def nodes(api: client.ApiClient) -> Iterator[list[str]]:
    """Three nodes that only these tests select, each with 4 cores; ready, as a kubelet would say."""
    core, mark = client.CoreV1Api(api), uuid.uuid4().hex[:6]
    names = [f"plan-{mark}-{letter}" for letter in "abc"]
    for name in names:
        core.create_node({"metadata": {"name": name, "labels": {LABEL: mark}}})
        size = {"cpu": "4", "memory": "420Mi", "pods": "110"}
        ready = {"type": "Ready", "status": "True", "reason": "Test", "message": "ready", "lastHeartbeatTime": None}
        core.patch_node_status(name, {"status": {"capacity": size, "allocatable": size, "conditions": [ready]}})
        # The API server taints what its kubelet has not reported yet.
        core.patch_node(name, {"spec": {"taints": None}})
    yield names
    for name in names:
        core.delete_node(name)


@pytest.fixture
def resource(tmp_path: Path, nodes: list[str], namespace: str) -> list[str]:
    """The command's arguments for a resource that may run on those nodes alone."""
    file, profile = tmp_path / "si.yaml", tmp_path / "profile.json"
    body = a_resource(namespace, placement={"nodeSelector": {LABEL: nodes[0].split("-")[1]}})
    file.write_text(yaml.safe_dump(body))
    profile.write_text(a_profile().model_dump_json())
    return ["plan", "-f", str(file), "--profile", str(profile)]


def prometheus(cores: dict[str, float]) -> object:
    """Answers the question for the nodes' cores, and has no series for any other."""

    def answer(request: Request) -> Response:
        query = parse_qs(urlsplit(request.path).query or request.body.decode())["query"][0]
        result = []
        if "node_cpu_seconds_total" in query:
            for name, used in cores.items():
                result.append({"metric": {"si_kind": "value", "node": name}, "value": [1.0, str(used)]})
                result.append({"metric": {"si_kind": "age", "node": name}, "value": [1.0, "2"]})
        return Response(json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode())

    return answer


def test_the_busy_node_is_avoided_and_said_to_be_busy(
    kubeconfig: str, nodes: list[str], resource: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    picture = tmp_path / "plan.svg"
    with serving(prometheus({nodes[0]: 3.8, nodes[1]: 0.0, nodes[2]: 0.4})) as port:  # type: ignore[arg-type]
        asked = [*resource, "--kubeconfig", kubeconfig, "--prometheus", f"http://127.0.0.1:{port}", "--svg", str(picture)]
        assert main(asked) == 0
    said = capsys.readouterr()
    assert f"{nodes[0]} left: a plan with it is not better (95% used by others" in said.out
    assert f"on {nodes[1]}: " in said.out
    assert "10% used by others" in said.out
    assert "utilization is not known" not in said.err + said.out
    drawn = " ".join(text.strip() for text in ElementTree.parse(picture).getroot().itertext())
    assert nodes[0] in drawn
    assert "95% used by others" in drawn


def test_without_prometheus_the_plan_says_what_it_does_not_know(
    kubeconfig: str, resource: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("SPLITINFERENCE_PROMETHEUS_URL", raising=False)
    assert main([*resource, "--kubeconfig", kubeconfig, "--json"]) == 0
    said = capsys.readouterr()
    assert "utilization is not known: no Prometheus is named (--prometheus URL, or SPLITINFERENCE_PROMETHEUS_URL)" in said.err
    assert json.loads(said.out)["outcome"] == "solved"


def test_a_prometheus_that_does_not_answer_is_said_and_the_plan_is_made(
    kubeconfig: str, resource: list[str], capsys: pytest.CaptureFixture[str]
):
    with serving(lambda _: Response(b"<html>")) as port:
        assert main([*resource, "--kubeconfig", kubeconfig, "--prometheus", f"http://127.0.0.1:{port}"]) == 0
    said = capsys.readouterr()
    assert f"utilization is not known: Prometheus at http://127.0.0.1:{port} " in said.err
    assert "is unknown: counted as idle" in said.out
