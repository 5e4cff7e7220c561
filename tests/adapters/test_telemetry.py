"""The operator's own metrics, as Prometheus reads them."""

import pytest
from prometheus_client import generate_latest

from splitinference.adapters.telemetry import ResourceGauges, Telemetry
from splitinference.controller.ports import UnavailableError
from splitinference.controller.runtime.workqueue import Ended, Pass
from splitinference.core.values.result import Infeasible, Limits

KEY = ("team", "chat")
RESOURCE = {
    "metadata": {"namespace": "team", "name": "chat"},
    "status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "plan": {"gap": 0.05, "segments": [{}, {}], "predicted": {"latencyMs": 1374.2}},
    },
}


def lines(telemetry: Telemetry) -> set[str]:
    return set(generate_latest(telemetry.registry).decode().splitlines())


def test_passes_and_decisions_are_counted():
    telemetry = Telemetry()
    telemetry.passed(KEY, Pass(Ended.DONE), 0.2)
    telemetry.passed(KEY, Pass(Ended.DONE, solved=True), 2.0)
    telemetry.called("PATCH")
    telemetry.decided(KEY, "migrate", "NodeBusy")
    found = lines(telemetry)
    assert 'splitinference_passes_total{ended="done"} 2.0' in found
    assert 'splitinference_pass_seconds_bucket{le="0.25",solved="no"} 1.0' in found
    assert 'splitinference_pass_seconds_bucket{le="1.0",solved="yes"} 0.0' in found
    assert 'splitinference_api_requests_total{method="PATCH"} 1.0' in found
    assert 'splitinference_decisions_total{name="chat",namespace="team",reason="NodeBusy",transition="migrate"} 1.0' in found


def test_solves_are_counted_by_outcome_and_handed_on():
    telemetry = Telemetry()
    answer = Infeasible(())
    solve = telemetry.timed(lambda problem, limits, hint=None: answer)
    assert solve(None, Limits()) is answer  # type: ignore[arg-type]
    assert 'splitinference_solves_total{outcome="Infeasible"} 1.0' in lines(telemetry)


def test_a_solver_that_breaks_is_counted_and_still_breaks():
    telemetry = Telemetry()

    def breaks(problem, limits, hint=None):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        telemetry.timed(breaks)(None, Limits())  # type: ignore[arg-type]
    assert 'splitinference_solves_total{outcome="broke"} 1.0' in lines(telemetry)


def test_figures_are_those_of_the_status_and_go_with_the_resource():
    telemetry = Telemetry()
    resources = [RESOURCE, {"metadata": {"namespace": "team", "name": "new"}}]
    telemetry.registry.register(ResourceGauges(lambda: resources))
    found = lines(telemetry)
    assert 'splitinference_plan_gap{name="chat",namespace="team"} 0.05' in found
    assert 'splitinference_plan_segments{name="chat",namespace="team"} 2.0' in found
    assert 'splitinference_predicted_latency_ms{name="chat",namespace="team"} 1374.2' in found
    assert 'splitinference_ready{name="new",namespace="team"} 0.0' in found
    assert not any('plan_gap{name="new"' in line for line in found), "what is not known is not zero"
    resources.clear()
    assert not any("chat" in line for line in lines(telemetry))


def test_an_api_server_that_is_away_leaves_the_rest_of_the_scrape():
    def away():
        raise UnavailableError("away")

    telemetry = Telemetry()
    telemetry.registry.register(ResourceGauges(away))
    telemetry.passed(KEY, Pass(Ended.RETRY), 1)
    assert 'splitinference_passes_total{ended="retry"} 1.0' in lines(telemetry)
