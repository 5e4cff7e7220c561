"""`plan` and `bench planner` as a user calls them: answers, schemas, and what is said about bad input."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import yaml

from splitinference.cli.main import main
from splitinference.cli.schemas import schemas
from splitinference.core.values.cluster import Snapshot
from splitinference.core.values.problem import Constraints, Goal, Objective, Problem, Workload
from splitinference.core.values.profile import LinkEncoding
from tests.core.cost.test_link_encoding import over_a_thin_link
from tests.core.planner_problems import a_node, a_profile
from tests.modelfiles import gguf_files, tables

ROOT = Path(__file__).parents[2]
RESOURCE = """
apiVersion: splitinference.dev/v1alpha1
kind: SplitInference
metadata: {name: chat, namespace: default}
spec:
  model:
    id: test
    source: {hostPath: {path: /models/test}}
    dtype: float16
    maxContextTokens: 256
"""


def a_problem(**more: object) -> Problem:
    nodes = tuple(a_node(f"n{i}", free_mib=250) for i in range(3))
    base = {"profile": a_profile(), "snapshot": Snapshot(nodes=nodes), "workload": Workload(max_context_tokens=256)}
    return Problem.model_validate({**base, **more})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "problem.json"
    path.write_text(a_problem().model_dump_json())
    return path


def validated(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text)
    jsonschema.validate(found, schemas()["outcome.schema.json"])
    return found


def test_a_problem_file_gives_a_plan_as_the_schema_has_it(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--problem", str(file), "--json"]) == 0
    found = validated(capsys.readouterr().out)
    assert found["outcome"] == "solved"
    assert found["optimal"] is True
    assert found["value"] == pytest.approx(found["bound"], rel=1e-6)


def test_people_get_stages_reasons_and_a_picture(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["plan", "--problem", str(file), "--svg", str(picture)]) == 0
    text = capsys.readouterr().out
    assert "proven best for these figures" in text
    assert "[0, " in text
    assert {"n0", "n1", "n2"} <= set(ElementTree.parse(picture).getroot().itertext())


def test_no_plan_is_said_with_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problem.json"
    path.write_text(a_problem(constraints=Constraints(max_nodes=1)).model_dump_json())
    assert main(["plan", "--problem", str(path), "--json"]) == 3
    found = validated(capsys.readouterr().out)
    reasons = found["reasons"]
    assert isinstance(reasons, list)
    assert reasons[0] == {"name": "max-nodes", "message": "at most 1 nodes are allowed", "relaxation": "max_nodes 3 instead of 1"}
    assert [reason["name"] for reason in reasons] == ["max-nodes", "memory"]


def test_a_broken_file_is_said_field_by_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = json.loads(a_problem().model_dump_json())
    content["snapshot"]["nodes"][0]["flops_per_s"] = -1
    content["workload"]["prompt_tokens"] = "many"
    content["unknown"] = 1
    path = tmp_path / "problem.json"
    path.write_text(json.dumps(content))
    assert main(["plan", "--problem", str(path)]) == 2
    said = capsys.readouterr().err
    assert "snapshot.nodes.0.flops_per_s: Input should be greater than 0 (given: -1)" in said
    assert "workload.prompt_tokens: Input should be a valid integer" in said
    assert "unknown: Extra inputs are not permitted" in said


def test_a_hint_that_is_still_best_stays(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--problem", str(file), "--json"]) == 0
    plan = validated(capsys.readouterr().out)["plan"]
    assert isinstance(plan, dict)
    hint = tmp_path / "hint.json"
    hint.write_text(json.dumps({k: v for k, v in plan.items() if k != "revision"}))
    assert main(["plan", "--problem", str(file), "--json", "--hint", str(hint)]) == 0
    assert validated(capsys.readouterr().out)["plan"]["revision"] == plan["revision"]  # type: ignore[index]


def test_several_problems_are_planned_without_taking_memory_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "problem.json"
    nodes = tuple(a_node(f"n{i}", free_mib=600, gflops=100.0 / (i + 1)) for i in range(2))
    path.write_text(a_problem(snapshot=Snapshot(nodes=nodes)).model_dump_json())
    for how in ([], ["--jointly"]):
        assert main(["plan", "--problem", str(path), str(path), "--json", *how]) == 0
        found = json.loads(capsys.readouterr().out)
        jsonschema.validate(found, schemas()["several.schema.json"])
        assert {s["node"] for plan in found["plans"] for p in plan["pipelines"] for s in p["segments"]} == {"n0", "n1"}
        assert found["alone"] is None
        assert found["value"] == pytest.approx(sum(plan["value"] for plan in found["plans"]))


def test_models_of_unlike_goals_are_weighed_by_what_each_reaches_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = tuple(a_node(f"n{i}", free_mib=600, gflops=100.0 / (i + 1), cost_per_hour=1.0 + i) for i in range(2))
    files = []
    for goal in (Goal.LATENCY, Goal.COST):
        files.append(str(tmp_path / f"{goal.value}.json"))
        problem = a_problem(snapshot=Snapshot(nodes=nodes), objective=Objective(goal=goal))
        Path(files[-1]).write_text(problem.model_dump_json())
    for how in ([], ["--jointly"]):
        assert main(["plan", "--problem", *files, "--json", *how]) == 0
        found = json.loads(capsys.readouterr().out)
        jsonschema.validate(found, schemas()["several.schema.json"])
        assert found["valueIs"].startswith("sum over the plans of value / best value alone")
        assert found["value"] == pytest.approx(sum(plan["value"] / best for plan, best in zip(found["plans"], found["alone"], strict=True)))
    assert main(["plan", "--problem", *files, "--jointly"]) == 0
    said = capsys.readouterr().out
    assert "cost 1 per hour; alone 1" in said
    assert "together " in said
    assert "proven best" in said


def test_a_flow_is_not_planned_jointly_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(tmp_path / "one.json"), str(tmp_path / "flow.json")]
    Path(files[0]).write_text(a_problem().model_dump_json())
    Path(files[1]).write_text(a_problem(objective=Objective(goal=Goal.THROUGHPUT)).model_dump_json())
    assert main(["plan", "--problem", *files, "--jointly"]) == 2
    assert "throughput is planned in turn, not jointly" in capsys.readouterr().err


def test_a_resource_is_planned_on_a_snapshot_and_on_what_kubectl_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource, profile = tmp_path / "si.yaml", tmp_path / "profile.json"
    resource.write_text(RESOURCE)
    profile.write_text(a_profile().model_dump_json())
    ours, theirs = tmp_path / "snapshot.json", tmp_path / "kubectl.json"
    ours.write_text(a_problem().snapshot.model_dump_json())
    status = {"allocatable": {"cpu": "4", "memory": "2Gi"}, "conditions": [{"type": "Ready", "status": "True"}]}
    node = {"kind": "Node", "metadata": {"name": "worker"}, "status": status}
    theirs.write_text(json.dumps({"kind": "List", "items": [node]}))
    for cluster, where in ((ours, "n0"), (theirs, "worker")):
        assert main(["plan", "-f", str(resource), "--profile", str(profile), "--cluster", str(cluster)]) == 0
        assert where in capsys.readouterr().out


def test_a_resource_whose_links_carry_eight_bits_is_planned_with_the_bytes_that_travel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = over_a_thin_link(LinkEncoding.PLAIN)
    profile, cluster = tmp_path / "profile.json", tmp_path / "snapshot.json"
    profile.write_text(problem.profile.model_dump_json())
    cluster.write_text(problem.snapshot.model_dump_json())
    found = []
    for encoding in ("Plain", "Int8"):
        spec = {**yaml.safe_load(RESOURCE)["spec"], "segments": {"linkEncoding": encoding}}
        spec["privacy"] = {"rules": [{"layers": "first", "nodeLabels": {"text": "yes"}}]}
        resource = tmp_path / f"{encoding}.yaml"
        resource.write_text(json.dumps({**yaml.safe_load(RESOURCE), "spec": spec}))
        assert main(["plan", "-f", str(resource), "--profile", str(profile), "--cluster", str(cluster), "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)["plan"]
        found.append([segment["node"] for segment in plan["pipelines"][0]["segments"]])
    assert found == [["near"], ["near", "far"]]


def test_no_cluster_to_ask_is_said_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource = tmp_path / "si.yaml"
    resource.write_text(RESOURCE)
    assert main(["plan", "-f", str(resource), "--kubeconfig", str(tmp_path / "none")]) == 2
    assert "usable kubeconfig" in capsys.readouterr().err


def test_a_model_is_read_from_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 4096}
    tables.model(tmp_path, config, tables.gpt2({**config, "n_positions": 4096}))
    resource, cluster = tmp_path / "si.yaml", tmp_path / "cluster.json"
    resource.write_text(RESOURCE)
    cluster.write_text(Snapshot(nodes=(a_node("big"),)).model_dump_json())
    assert main(["plan", "-f", str(resource), "--model", str(tmp_path), "--cluster", str(cluster)]) == 0
    assert "layers [0, 3) on big" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["m.gguf", ""])
def test_a_gguf_model_is_planned_from_its_header(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf_files.llama(blocks=4).write(tmp_path / "m" / "m.gguf")
    resource, cluster = tmp_path / "si.yaml", tmp_path / "cluster.json"
    resource.write_text(RESOURCE + "  partition: {minSegments: 2}\n")
    cluster.write_text(Snapshot(nodes=(a_node("a"), a_node("b"))).model_dump_json())
    assert main(["plan", "-f", str(resource), "--model", str(tmp_path / "m" / name), "--cluster", str(cluster)]) == 0
    assert "layers [0, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("whole", "more", "words"),
    [
        (gguf_files.llama(arch="falcon"), "", "the model cannot be served: GGUF architecture 'falcon' is not served"),
        (gguf_files.llama(arch="gemma2", blocks=46), "  partition: {minSegments: 2}\n", "the model's engine can cut it into 1 at most"),
        (gguf_files.llama(), "  verification: {samplePercent: 1}\n", "spec.verification needs engine Torch"),
        (gguf_files.llama(), "    engine: Torch\n", "needs spec.model.engine Auto or LlamaCpp"),
        (gguf_files.llama(), "    digest: sha256:" + "a" * 64 + "\n", "spec.model.digest is available for safetensors alone"),
        (gguf_files.Gguf(version=9), "", "has version 9 of GGUF"),
    ],
)
def test_a_gguf_model_that_cannot_be_served_is_refused(
    whole: gguf_files.Gguf, more: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource, cluster = tmp_path / "si.yaml", tmp_path / "cluster.json"
    resource.write_text(RESOURCE + more)
    cluster.write_text(Snapshot(nodes=(a_node("a"), a_node("b"))).model_dump_json())
    assert main(["plan", "-f", str(resource), "--model", str(whole.write(tmp_path / "m.gguf")), "--cluster", str(cluster)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "names", "words"),
    [
        ({"n_positions": 128}, ("tokenizer.json",), "spec.model.maxContextTokens: 256 is more than the 128 positions that the model has"),
        ({"model_type": "falcon"}, ("tokenizer.json",), "the model cannot be served: model_type 'falcon' is not served"),
        ({}, ("vocab.json",), "there is no tokenizer.json"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused(
    more: dict[str, Any], names: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 16, "n_positions": 4096, **more}
    tables.model(tmp_path, config, tables.gpt2(config), names=names)
    resource, cluster = tmp_path / "si.yaml", tmp_path / "cluster.json"
    resource.write_text(RESOURCE)
    cluster.write_text(Snapshot(nodes=(a_node("big"),)).model_dump_json())
    assert main(["plan", "-f", str(resource), "--model", str(tmp_path), "--cluster", str(cluster)]) == 2
    assert words in capsys.readouterr().err


def test_a_cluster_file_that_is_neither_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resource, profile, cluster = tmp_path / "si.yaml", tmp_path / "profile.json", tmp_path / "cluster.json"
    resource.write_text(RESOURCE)
    profile.write_text(a_profile().model_dump_json())
    cluster.write_text('{"nodes": [{"name": "a"}]}')
    assert main(["plan", "-f", str(resource), "--profile", str(profile), "--cluster", str(cluster)]) == 2
    assert "nodes.0.memory_free_bytes: Field required" in capsys.readouterr().err


def test_the_published_schemas_are_those_of_the_models() -> None:
    for name, schema in schemas().items():
        assert json.loads((ROOT / "docs/reference" / name).read_text()) == schema
        jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(a_problem().model_dump_json()), schemas()["problem.schema.json"])


def test_the_planner_is_never_worse_than_a_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "planner", "--quick", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert len(rows) == 17
    wanted = {"instance", "objective", "layers", "nodes", "seconds", "value", "bound", "gap", "optimal", "baselines"}
    assert all(set(row) == wanted for row in rows)
    for row in rows:
        values = [value for value in row["baselines"].values() if value is not None]
        assert values
        if row["objective"] == "throughput":
            assert max(values) <= row["value"] <= row["bound"]
        else:
            assert row["bound"] <= row["value"] <= min(values) * (1 + 1e-6)
            assert row["optimal"] or row["objective"] == "jointly latency + bottleneck"
