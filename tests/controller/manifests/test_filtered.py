"""`spec.filter`: what the gateway is told, and what the condition says of what gateways report."""

from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.adapters.peers.gateway import merged
from splitinference.controller.api.sections.filter_spec import FilterSpec
from splitinference.controller.api.spec import Rejected, Spec
from splitinference.controller.reconcile.planning.scaling import load_of
from splitinference.controller.reconcile.status.filtered import filtered
from splitinference.controller.spec_to_core import plan_constraints
from splitinference_protocol.report import Filtered, GatewayReport, ObservedTraffic
from tests.controller.manifests.built import a_resource, gateway, variables


def report(**found: Any) -> GatewayReport:
    return GatewayReport(filter=Filtered(**found))


def test_the_gateway_is_told() -> None:
    def told(**spec: Any) -> dict[str, str]:
        return variables(gateway(a_resource(**spec))["Deployment"]["spec"]["template"]["spec"]["containers"][0])

    assert not any(name.startswith("SI_FILTER") for name in told())
    made = told(filter={"samplePercent": 2.5, "agreementPercent": 90})
    assert (made["SI_FILTER_FILE"], made["SI_FILTER_SAMPLE"], made["SI_FILTER_FLOOR"]) == ("filter.json", "0.025", "0.9")
    assert (made["SI_FILTER_MODE"], made["SI_FILTER_AFTER_LAYERS"]) == ("skip", "0")
    assert "SI_FILTER_SCOPE" not in made
    assert told(filter={"afterLayers": 4})["SI_FILTER_AFTER_LAYERS"] == "4"
    made = told(filter={"mode": "Reuse", "scope": "All", "ttl": "90s"})
    assert (made["SI_FILTER_MODE"], made["SI_FILTER_SCOPE"], made["SI_FILTER_SECONDS"]) == ("reuse", "all", "90")


def test_the_condition_has_the_numbers() -> None:
    asked = FilterSpec()
    assert filtered(asked, None).holds is None
    assert filtered(asked, GatewayReport()).reason == "NotReported"
    works = filtered(asked, report(rows=9, compared=200, agreement=0.97))
    assert (works.holds, works.reason) == (True, "Filtering")
    assert "97.0 % of the last 200 compared rows" in works.message
    opened = filtered(asked, report(compared=60, agreement=0.8, floor=0.95, open=True))
    assert (opened.holds, opened.reason) == (False, "AgreementTooLow")
    assert "80.0 % of the last 60 compared rows, and at least 95 % is required" in opened.message

    unused = filtered(asked, report(rows=9, problem="this segment has 2 of 5"))
    assert (unused.holds, unused.reason) == (False, "NotUsed")
    assert "this segment has 2 of 5" in unused.message
    passing = filtered(FilterSpec(mode="Reuse", scope="All"), report(rows=9, mode="Reuse", pass_rate=0.25))
    assert "get earlier answers by filter.json" in passing.message
    assert "25.0 % of the rows of the last minute reached the segments" in passing.message


def points(after: int, layers: int = 6, **spec: Any) -> Any:
    body = a_resource(filter={"afterLayers": after}, **spec)["spec"]
    return plan_constraints.constraints(Spec.model_validate(body), layers)


def test_the_layers_of_the_filter_stay_in_one_segment() -> None:
    assert points(0).split_points is None
    assert points(1).split_points is None, "behind the first layer is the first boundary"
    assert points(3).split_points == (3, 4, 5)
    assert points(3, partition={"allowedSplitPoints": [1, 2, 4]}).split_points == (4,)
    assert points(3, partition={"allowedSplitPoints": [1, 2]}).split_points == ()
    refused = points(6)
    assert isinstance(refused, Rejected)
    assert (refused.problems[0].path, "at most 5" in refused.problems[0].message) == ("spec.filter.afterLayers", True)


def test_the_pass_rate_lowers_the_arrival_rate_that_is_planned_for() -> None:
    def rate(**found: Any) -> float:
        told = GatewayReport(observed=ObservedTraffic(window_seconds=60, arrived=120), **found)
        load = load_of(told)
        assert load is not None
        return load.requests_per_s

    assert rate() == 2.0
    assert rate(filter=Filtered(rows=5)) == 2.0, "none came lately, or a filter over layers"
    assert rate(filter=Filtered(rows=5, pass_rate=0.25)) == 0.5
    assert rate(filter=Filtered(rows=5, pass_rate=0.0)) == 0.0
    assert rate(filter=Filtered(rows=5, pass_rate=7.0)) == 2.0


def test_pass_rates_of_gateways_are_weighted_by_their_rows() -> None:
    found = merged([report(rows=30, pass_rate=0.5), report(rows=10, pass_rate=0.1), report(rows=99, problem="it is away")])
    assert found is not None
    assert found.filter is not None
    assert found.filter.pass_rate == pytest.approx(0.4)
    assert found.filter.problem == "it is away"


def test_of_several_gateways_one_that_opened_counts() -> None:
    found = merged(
        [report(rows=10, skipped=4, compared=10, agreement=0.5, open=True), GatewayReport(), report(rows=5, compared=30, agreement=0.9)]
    )
    assert found is not None
    assert found.filter is not None
    assert (found.filter.rows, found.filter.skipped, found.filter.compared, found.filter.open) == (15, 4, 40, True)
    assert found.filter.agreement == pytest.approx(0.8)
    none = merged([GatewayReport(), GatewayReport()])
    assert none is not None
    assert none.filter is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "Cache"},
        {"mode": "Reuse", "afterLayers": 1},
        {"afterLayers": -1},
        {"scope": "Team"},
        {"ttl": "0s"},
        {"ttl": "200h"},
        {"file": "../a.json"},
        {"file": "a.pkl"},
        {"samplePercent": 0},
        {"agreementPercent": 101},
    ],
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate({**a_resource()["spec"], "filter": wrong})
