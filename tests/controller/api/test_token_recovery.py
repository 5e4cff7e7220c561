"""A limit on token recovery: which layers it keeps on trusted nodes, and what is refused."""

import pytest

from splitinference.controller.api.sections.privacy_spec import TRUSTED
from splitinference.controller.api.spec import Rejected
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.controller.trust.trust_labels import trusted_labels
from splitinference.core.cost import violations
from splitinference.core.planner import solve
from splitinference.core.values.result import Infeasible, Limits, Solved
from tests.controller.api.test_resource import problems, read
from tests.core.planning import a_node, a_plan, a_problem

TABLE = [96, 70, 50, 40, 45, 100]
"""Of a model of seven layers."""


def rules(limit: int, table: list[float] = TABLE, layers: int = 7, **privacy: object) -> list[tuple[int, int]]:
    spec = read(privacy={"maxTokenRecoveryPercent": limit, "tokenRecoveryPercent": table, **privacy}).spec
    found = plan_constraints.constraints(spec, layers)
    assert not isinstance(found, Rejected), str(found)
    return [(rule.start, rule.end) for rule in found.trust]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (100, []),
        (99, [(0, 1), (5, 7)]),  # tokens enter before layer 0; boundary 6 reveals all
        (96, [(0, 1), (5, 7)]),
        (95, [(0, 2), (5, 7)]),
        (50, [(0, 3), (5, 7)]),
        (45, [(0, 4), (5, 7)]),
        (44, [(0, 7)]),  # layer 4 has 40 on one side and 45 on the other
        (0, [(0, 7)]),
    ],
)
def test_a_layer_is_kept_where_either_side_reveals_more(limit, expected):
    assert rules(limit) == expected


def test_where_no_cut_is_good_enough_the_lowest_is_said():
    spec = read(privacy={"maxTokenRecoveryPercent": 30, "tokenRecoveryPercent": TABLE}).spec
    (rule,) = plan_constraints.constraints(spec, 7).trust
    assert rule.because == "no cut keeps maxTokenRecoveryPercent 30: the lowest is 45 %, by layer 4 alone"


@pytest.mark.parametrize("table", [TABLE[:-1], [*TABLE, 3]])
def test_a_table_of_another_model_is_refused_with_the_numbers(table):
    spec = read(privacy={"maxTokenRecoveryPercent": 50, "tokenRecoveryPercent": table}).spec
    rejected = plan_constraints.constraints(spec, 7)
    assert isinstance(rejected, Rejected)
    assert f"it has {len(table)} figures; the model has 7 layers, so 6 boundaries" in str(rejected)
    assert "splitinference bench privacy" in str(rejected)


def test_a_limit_without_a_table_is_refused_with_the_command():
    assert "splitinference bench privacy --model DIR --yaml" in problems(privacy={"maxTokenRecoveryPercent": 50})["spec.privacy"]


@pytest.mark.parametrize(
    ("privacy", "path"),
    [
        ({"maxTokenRecoveryPercent": 101, "tokenRecoveryPercent": [1]}, "spec.privacy.maxTokenRecoveryPercent"),
        ({"maxTokenRecoveryPercent": -1, "tokenRecoveryPercent": [1]}, "spec.privacy.maxTokenRecoveryPercent"),
        ({"tokenRecoveryPercent": [101]}, "spec.privacy.tokenRecoveryPercent[0]"),
        ({"tokenRecoveryPercent": [float("nan")]}, "spec.privacy.tokenRecoveryPercent[0]"),
        ({"tokenRecoveryPercent": []}, "spec.privacy.tokenRecoveryPercent"),
        ({"trustedNodeLabels": {}}, "spec.privacy.trustedNodeLabels"),
    ],
)
def test_figures_that_are_none_are_refused_by_name(privacy, path):
    assert path in problems(privacy=privacy)


def test_the_gateway_sees_text_and_keeps_the_labels_of_trusted_nodes():
    limited = read(privacy={"maxTokenRecoveryPercent": 50, "tokenRecoveryPercent": TABLE}).spec
    assert {TRUSTED: "true"} in plan_constraints.text_labels(limited, 7)
    assert plan_constraints.text_labels(read(privacy={"tokenRecoveryPercent": TABLE}).spec, 7) == ()


def test_labels_that_nodes_may_set_themselves_are_warned_of():
    spec = read(privacy={"maxTokenRecoveryPercent": 50, "tokenRecoveryPercent": TABLE, "trustedNodeLabels": {"mine": "yes"}}).spec
    condition = trusted_labels(spec.privacy.rules, plan_constraints.trust_used(spec))
    assert condition is not None
    assert condition.holds is False
    assert "mine" in condition.message


def test_the_planner_keeps_the_limit_and_says_what_stands_in_the_way():
    spec = read(privacy={"maxTokenRecoveryPercent": 50, "tokenRecoveryPercent": TABLE[:3], "trustedNodeLabels": {"trusted": "yes"}}).spec
    bounds = plan_constraints.constraints(spec, 4)
    assert [(rule.start, rule.end) for rule in bounds.trust] == [(0, 4)]
    problem = a_problem(a_node("a"), a_node("b"), constraints=bounds)
    answer = solve(problem, Limits(seconds=10))
    assert isinstance(answer, Infeasible)
    assert "the lowest is 70 %" in str(answer)
    trusted = a_problem(a_node("a", labels={"trusted": "yes"}), a_node("b"), constraints=bounds)
    found = solve(trusted, Limits(seconds=10))
    assert isinstance(found, Solved)
    assert {segment.node for segment in found.plan.segments} == {"a"}
    assert any("the lowest is 70 %" in each.message for each in violations(a_plan("a[0:2] b[2:4]"), trusted))
