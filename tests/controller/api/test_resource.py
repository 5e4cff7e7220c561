"""A resource is read into frozen values, and what is wrong with it names the field."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitinference.controller.api.sections.adaptation_spec import Mode
from splitinference.controller.api.sections.spec_value import LayerRange
from splitinference.controller.api.spec import Rejected, Resource, read_resource
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.controller.spec_to_core.policy import policy
from splitinference.core.values.problem import Goal
from splitinference.core.values.profile import LinkEncoding

SAMPLE = Path(__file__).parents[3] / "config" / "samples" / "splitinference.yaml"


def a_body(**spec: Any) -> dict[str, Any]:
    model = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}
    return {"metadata": {"name": "chat", "namespace": "default", "uid": "u", "generation": 3}, "spec": {"model": model, **spec}}


def read(**spec: Any) -> Resource:
    resource = read_resource(a_body(**spec))
    assert isinstance(resource, Resource), str(resource)
    return resource


def problems(**spec: Any) -> dict[str, str]:
    rejected = read_resource(a_body(**spec))
    assert isinstance(rejected, Rejected)
    return {problem.path: problem.message for problem in rejected.problems}


def test_the_sample_reads():
    resource = read_resource(yaml.safe_load(SAMPLE.read_text()))
    assert isinstance(resource, Resource)
    assert resource.spec.adaptation.window == timedelta(seconds=10)
    assert resource.spec.model.source.host_path is not None


def test_the_smallest_spec_has_defaults():
    spec = read().spec
    assert spec.adaptation.mode is Mode.AUTO
    assert spec.adaptation.cooldown == timedelta(minutes=5)
    assert spec.adaptation.stabilization == policy(spec.adaptation).stabilization == timedelta(minutes=10)
    assert spec.model.max_concurrent_sequences == 4
    assert plan_constraints.constraints(spec, 32).trust == ()
    assert plan_constraints.slo(spec).time_to_first_token_ms is None
    assert plan_constraints.link_encoding(spec) is LinkEncoding.PLAIN


def test_links_may_carry_eight_bits_a_value():
    assert plan_constraints.link_encoding(read(segments={"linkEncoding": "Int8"}).spec) is LinkEncoding.INT8
    assert plan_constraints.link_encoding(read(segments={"linkEncoding": "Auto"}).spec) is LinkEncoding.AUTO
    assert "spec.segments.linkEncoding" in problems(segments={"linkEncoding": "int8"})


def test_answers_that_change_with_a_link_are_not_reused():
    assert "linkEncoding Plain or Int8" in problems(reuse={"scope": "All"}, segments={"linkEncoding": "Auto"})["spec"]


@pytest.mark.parametrize(("text", "seconds"), [("800ms", 0.8), ("1.5s", 1.5), ("1m30s", 90), ("2h", 7200), ("0s", 0)])
def test_durations_are_kubernetes_durations(text, seconds):
    assert read(adaptation={"cooldown": text}).spec.adaptation.cooldown == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["10", "ten", "10 s", "-1s", "1d", ""])
def test_other_durations_are_refused_by_name(text):
    assert "is not a duration" in problems(adaptation={"cooldown": text})["spec.adaptation.cooldown"]


@pytest.mark.parametrize("source", [{}, {"hostPath": {"path": "/m"}, "huggingFace": {"repository": "a/b"}}])
def test_a_model_has_exactly_one_source(source):
    assert "exactly one" in problems(model={"id": "m", "source": source})["spec.model.source"]


@pytest.mark.parametrize(
    ("text", "expected"), [("first", (0, 1)), ("last", (31, 32)), ("0:4", (0, 4)), ("30:32", (30, 32)), ("30:33", None)]
)
def test_layers_of_a_model(text, expected):
    assert LayerRange.model_validate(text).of(32) == expected


@pytest.mark.parametrize("text", ["4:4", "5:4", "4", "middle", "-1:3", "0:4:8"])
def test_layers_of_no_meaning_are_refused_by_name(text):
    found = problems(partition={"pins": [{"layers": text, "node": "a"}]})
    assert list(found) == ["spec.partition.pins[0].layers"]


@pytest.mark.parametrize(
    ("adaptation", "sentence"),
    [
        ({"window": "5s", "confirmations": 6}, "window must hold confirmations"),
        ({"mode": "Auto", "maxMovesPerHour": 0}, "maxMovesPerHour 0 contradicts mode Auto"),
    ],
)
def test_thresholds_that_contradict_each_other_are_refused(adaptation, sentence):
    assert sentence in problems(adaptation=adaptation)["spec.adaptation"]


def test_all_that_is_wrong_is_said_at_once():
    found = problems(model={"id": "", "source": {"hostPath": {"path": "/m"}}, "dtype": "int4"}, adaptation={"confirmations": 0})
    assert set(found) == {"spec.model.id", "spec.model.dtype", "spec.adaptation.confirmations"}


def test_the_core_gets_the_same_in_its_units():
    spec = read(
        objective={"goal": "bottleneck", "weights": {"utilization": 5, "move": 2}},
        slo={"timeToFirstToken": "1.5s", "timePerOutputToken": "40ms"},
        partition={"minSegments": 2, "maxSegments": 3, "allowedSplitPoints": [20, 10], "pins": [{"layers": "last", "node": "b"}]},
        privacy={"rules": [{"layers": "first", "nodeLabels": {"trusted": "true"}}]},
        placement={"nodeSelector": {"pool": "edge"}, "tolerations": [{"key": "k", "operator": "Exists"}], "maxNodes": 3},
        segments={"memoryMarginPercent": 25},
        workload={"promptTokens": 64, "outputTokens": 32},
    ).spec
    constraints = plan_constraints.constraints(spec, 32)
    assert not isinstance(constraints, Rejected)
    assert (constraints.min_segments, constraints.max_segments, constraints.max_nodes) == (2, 3, 3)
    assert constraints.split_points == (10, 20)
    assert [(p.start, p.end, p.node) for p in constraints.pins] == [(31, 32, "b")]
    assert [(t.start, t.end, dict(t.labels)) for t in constraints.trust] == [(0, 1, {"trusted": "true"})]
    assert dict(constraints.node_selector) == {"pool": "edge"}
    assert constraints.tolerations[0].operator == "Exists"
    assert constraints.memory_margin == 0.25
    assert plan_constraints.objective(spec).goal is Goal.BOTTLENECK
    assert (plan_constraints.objective(spec).utilization_weight, plan_constraints.objective(spec).move_weight) == (5, 2)
    assert plan_constraints.slo(spec).time_to_first_token_ms == pytest.approx(1500)
    assert plan_constraints.slo(spec).time_per_output_token_ms == pytest.approx(40)
    assert plan_constraints.workload(spec).prompt_tokens == 64


def test_layers_that_the_model_does_not_have_are_refused_with_the_numbers():
    spec = read(
        partition={"minSegments": 9, "allowedSplitPoints": [8], "pins": [{"layers": "4:9", "node": "a"}]},
        privacy={"rules": [{"layers": "8:9", "nodeLabels": {"a": "b"}}]},
    ).spec
    rejected = plan_constraints.constraints(spec, 8)
    assert isinstance(rejected, Rejected)
    assert {problem.path for problem in rejected.problems} == {
        "spec.partition.minSegments",
        "spec.partition.allowedSplitPoints[0]",
        "spec.partition.pins[0].layers",
        "spec.privacy.rules[0].layers",
    }
    assert "4:9 is outside of the model: it has the layers 0:8" in str(rejected)


def test_the_gateway_keeps_the_rules_of_all_layers_that_see_text():
    rules = [("first", "a"), ("0:3", "b"), ("2:5", "c"), ("6:8", "d"), ("last", "e")]
    spec = read(privacy={"rules": [{"layers": layers, "nodeLabels": {"l": value}} for layers, value in rules]}).spec
    assert [labels["l"] for labels in plan_constraints.text_labels(spec, 8)] == ["a", "b", "d", "e"]
