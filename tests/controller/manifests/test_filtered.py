"""`spec.filter`: what the gateway is told, and what the condition says of what gateways report."""

from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.adapters.peers.gateway import merged
from splitinference.controller.api.sections.filter_spec import FilterSpec
from splitinference.controller.api.spec import Spec
from splitinference.controller.reconcile.status.filtered import filtered
from splitinference_protocol.report import Filtered, GatewayReport
from tests.controller.manifests.built import a_resource, gateway, variables


def report(**found: Any) -> GatewayReport:
    return GatewayReport(filter=Filtered(**found))


def test_the_gateway_is_told() -> None:
    def told(**spec: Any) -> dict[str, str]:
        return variables(gateway(a_resource(**spec))["Deployment"]["spec"]["template"]["spec"]["containers"][0])

    assert not any(name.startswith("SI_FILTER") for name in told())
    made = told(filter={"samplePercent": 2.5, "agreementPercent": 90})
    assert (made["SI_FILTER_FILE"], made["SI_FILTER_SAMPLE"], made["SI_FILTER_FLOOR"]) == ("filter.json", "0.025", "0.9")


def test_the_condition_has_the_numbers() -> None:
    asked = FilterSpec()
    assert filtered(asked, None).holds is None
    assert filtered(asked, GatewayReport()).reason == "NotReported"
    works = filtered(asked, report(rows=9, compared=200, agreement=0.97))
    assert (works.holds, works.reason) == (True, "Filtering")
    assert "97.0 % of the last 200 compared rows" in works.message
    opened = filtered(asked, report(compared=60, agreement=0.8, floor=0.95, open=True))
    assert (opened.holds, opened.reason) == (False, "AgreementTooLow")
    assert "80.0 % of the last 60 compared rows, and at least 95 % is wanted" in opened.message


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
    "wrong", [{"mode": "Reuse"}, {"file": "../a.json"}, {"file": "a.pkl"}, {"samplePercent": 0}, {"agreementPercent": 101}]
)
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Spec.model_validate({**a_resource()["spec"], "filter": wrong})
