"""`splitinference plan` on nodes with devices: the table, the picture and the reasons name the processor of each segment."""

import json
import re
from pathlib import Path

import pytest
import yaml

from splitinference.cli.main import main
from tests.core.planning import a_profile

GPU = "example.com/gpu"
RULES = [{"resource": GPU, "class": "npu", "memoryMib": 300, "gflops": 50000, "gbps": 500}]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A resource, its model's profile, and a node with one free device of two, as kubectl prints it."""
    monkeypatch.setenv("SPLITINFERENCE_DEVICE_RULES", json.dumps(RULES))
    monkeypatch.setenv("SPLITINFERENCE_SEGMENT_IMAGES_BY_CLASS", '{"npu": {"image": "segment:npu"}}')
    monkeypatch.setenv("SPLITINFERENCE_SEGMENT_DEVICE_HOST_MIB", "100")
    spec = {"model": {"id": "m", "source": {"hostPath": {"path": "/m"}}, "dtype": "float32"}}
    body = {"apiVersion": "splitinference.dev/v1alpha1", "kind": "SplitInference", "metadata": {"name": "chat"}, "spec": spec}
    (tmp_path / "si.yaml").write_text(yaml.safe_dump(body))
    (tmp_path / "profile.json").write_text(a_profile().model_dump_json())
    offered = {"cpu": "4", "memory": "900Mi", GPU: "2", "nvidia.com/gpu": "1"}
    node = {
        "kind": "Node",
        "metadata": {"name": "a", "labels": {}},
        "status": {"allocatable": offered, "conditions": [{"type": "Ready", "status": "True"}]},
    }
    requests = {"resources": {"requests": {GPU: "1", "memory": "10Mi"}}}
    pod = {"kind": "Pod", "metadata": {"name": "theirs", "namespace": "x"}, "spec": {"nodeName": "a", "containers": [requests]}}
    (tmp_path / "cluster.json").write_text(json.dumps({"kind": "List", "items": [node, pod]}))
    return tmp_path


def test_table_picture_and_reasons_name_the_processors(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = files / "plan.svg"
    words = ["-f", str(files / "si.yaml"), "--profile", str(files / "profile.json"), "--cluster", str(files / "cluster.json")]
    assert main(["plan", *words, "--svg", str(picture)]) == 0
    said = capsys.readouterr().out
    assert f"a/{GPU}/0" in said
    assert re.search(r"\[\d, \d\)\s+a\s", said), "and the node's CPU has the rest"
    assert "nvidia.com/gpu of a not used: no segment image for class cuda" in said
    drawn = picture.read_text()
    assert f"on {GPU}/0" in drawn
    assert "on its CPU" in drawn
    assert "<line" not in drawn, "inside a node there is no link to draw"
