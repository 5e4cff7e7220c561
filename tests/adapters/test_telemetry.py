"""The operator's own metrics, as Prometheus reads them."""

import pytest
from prometheus_client import generate_latest

from splitinference.adapters.kubernetes.counted import CountedCluster
from splitinference.adapters.telemetry import ResourceGauges, Telemetry
from splitinference.controller.identity import Owner
from splitinference.controller.manifests.pod_parts import metadata
from splitinference.controller.ports import UnavailableError
from splitinference.controller.reconcile.upkeep.credentials import NOT_AFTER
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


def test_conditions_are_there_with_their_reason_and_the_slo_as_it_is_asked_for():
    telemetry = Telemetry()
    conditions = [{"type": "Progressing", "status": "False", "reason": "Blocked"}]
    slo = {"timeToFirstToken": "1.5s", "timePerOutputToken": "40ms"}
    resources = [
        {"metadata": {"namespace": "team", "name": "chat"}, "spec": {"slo": slo}, "status": {"conditions": conditions}},
        {"metadata": {"namespace": "team", "name": "wrong"}, "spec": {"slo": {"timeToFirstToken": "soon"}}},
    ]
    telemetry.registry.register(ResourceGauges(lambda: resources))
    found = lines(telemetry)
    assert 'splitinference_condition{name="chat",namespace="team",reason="Blocked",status="False",type="Progressing"} 1.0' in found
    assert 'splitinference_slo_time_to_first_token_ms{name="chat",namespace="team"} 1500.0' in found
    assert 'splitinference_slo_time_per_output_token_ms{name="chat",namespace="team"} 40.0' in found
    assert not any("wrong" in line and "slo" in line for line in found)


def test_the_end_of_a_certificate_is_told_until_its_resource_is_gone():
    telemetry = Telemetry()
    resources = [RESOURCE]
    telemetry.registry.register(ResourceGauges(lambda: resources, telemetry.certificates))
    telemetry.certified(KEY, "gateway", "2026-01-01T00:00:00Z")
    telemetry.certified(KEY, "gateway", "2026-01-02T00:00:00Z")
    line = 'splitinference_certificate_expiry_timestamp_seconds{name="chat",namespace="team",role="gateway"} 1.7673120e+09'
    assert line.replace("1.7673120e+09", "1.767312e+09") in lines(telemetry)
    resources.clear()
    assert not any("certificate_expiry" in found and "chat" in found for found in lines(telemetry))


def test_whoever_writes_a_secret_tells_when_its_certificate_ends():
    about = metadata(Owner(namespace="team", name="chat", uid="of-chat"), "chat-gateway-tls", "gateway")

    class Silent(CountedCluster):
        def _call(self, method, path, **how):
            return {"metadata": {**about, "uid": "1"}}

    told: list[tuple[object, ...]] = []
    cluster = Silent(None, 5.0, (), lambda *_: None, lambda _: None, certified=lambda *words: told.append(words))  # type: ignore[arg-type]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": about}
    cluster.apply_unread(secret)
    assert told == []
    cluster.apply_unread({**secret, "metadata": {**about, "annotations": {NOT_AFTER: "2026-01-01T00:00:00Z"}}})
    assert told == [(KEY, "gateway", "2026-01-01T00:00:00Z")]
