"""What the pods of a gateway say of their routes, together."""

import json
from typing import Any

import pytest

from splitinference.adapters.gateway import GatewayRoutes, merged
from splitinference.controller.ports import GatewayReport, ObservedTraffic
from tests.adapters.serving import Response, serving


def a_pod(
    ip: str = "127.0.0.1", component: str = "gateway", phase: str = "Running", ready: bool = True, stopping: bool = False
) -> dict[str, Any]:
    metadata = {"name": "p", "labels": {"app.kubernetes.io/component": component}}
    if stopping:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {"metadata": metadata, "status": {"podIP": ip, "phase": phase, "conditions": conditions}}


def report(revision: str = "new", **in_flight: int) -> Response:
    routes = {name: {"inFlight": count, "state": "serving" if name == revision else "draining"} for name, count in in_flight.items()}
    return Response(json.dumps({"revision": revision, "routes": routes, "observed": {"requests": 7}, "later": 1}).encode())


def ask(*pods: dict[str, Any], port: int, timeout: float = 1.0) -> GatewayReport | None:
    return GatewayRoutes(lambda kind, namespace, instance: pods, timeout, port).routes("team", "chat")


def test_a_gateway_is_asked_at_its_pods_address():
    paths: list[str] = []

    def gateway(request):
        paths.append(request.path)
        return report(new=2, old=1)

    with serving(gateway) as port:
        said = ask(a_pod(), a_pod(component="segment"), a_pod(phase="Pending"), port=port)
    assert said is not None
    assert (said.revision, said.routes["old"].in_flight, said.observed.requests) == ("new", 1, 7)
    assert paths == ["/internal/routes"]


def test_it_is_asked_again_and_again():
    with serving(lambda _: report(new=2)) as port:
        routes = GatewayRoutes(lambda kind, namespace, instance: [a_pod()], 1.0, port)
        assert all(routes.routes("team", "chat") is not None for _ in range(50))


def test_no_proxy_is_asked_for_a_pods_address(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with serving(lambda _: report(new=2)) as port:
        assert ask(a_pod(), port=port) is not None


def test_none_where_nobody_answers():
    assert ask(port=1) is None
    assert ask(a_pod(), port=1) is None


def test_none_where_it_answers_with_something_else():
    for response in (Response(b"<html>"), Response(b"[]"), Response(b"{}", status=500), Response(b'{"routes": {"a": {"inFlight": -1}}}')):
        with serving(lambda _, response=response: response) as port:
            assert ask(a_pod(), port=port) is None


@pytest.mark.parametrize("odd", ["NaN", "-4", '"quick"', "1e999", "null", "true"])
def test_an_odd_time_is_not_known_and_the_rest_of_the_report_is_read(odd: str):
    """JSON has no NaN, Python's reader takes it all the same: routes must be drained whatever a clock said."""
    figures = '{"requests": 7, "timePerOutputTokenMs": {"p50": %s, "p95": 9}, "stages": {"s": {"computeMs": %s, "queueMs": 2, "steps": 5}}}'
    text = '{"revision": "new", "routes": {"old": {"inFlight": 3}}, "observed": ' + figures % (odd, odd) + "}"
    with serving(lambda _: Response(text.encode())) as port:
        found = ask(a_pod(), port=port)
    assert found is not None
    assert found.routes["old"].in_flight == 3
    assert (found.observed.time_per_output_token_ms.p50, found.observed.time_per_output_token_ms.p95) == (None, 9)
    assert (found.observed.stages["s"].compute_ms, found.observed.stages["s"].queue_ms) == (None, 2)


@pytest.mark.parametrize("observed", [{"requests": -1}, {"requests": "many"}, {"windowSeconds": 0}, {"stages": 5}, "nothing", None])
def test_figures_that_cannot_be_read_are_none_seen_and_routes_are_read(observed: object):
    text = json.dumps({"revision": "new", "routes": {"old": {"inFlight": 3}}, "observed": observed})
    with serving(lambda _: Response(text.encode())) as port:
        found = ask(a_pod(), port=port)
    assert found is not None
    assert (found.routes["old"].in_flight, found.observed) == (3, ObservedTraffic())


def test_one_of_two_that_should_answer_and_does_not_makes_all_unknown():
    with serving(lambda _: report(new=1)) as port:
        assert ask(a_pod(), a_pod(ip="127.0.0.2"), port=port) is None


def test_one_that_is_being_stopped_or_is_known_to_be_down_does_not():
    with serving(lambda _: report(new=1)) as port:
        assert ask(a_pod(), a_pod(ip="127.0.0.2", stopping=True), port=port) is not None
        assert ask(a_pod(), a_pod(ip="127.0.0.2", ready=False), port=port) is not None


def said(revision: str, requests: int, **in_flight: int) -> GatewayReport:
    routes = {name: {"inFlight": count, "state": "serving" if name == revision else "draining"} for name, count in in_flight.items()}
    return GatewayReport.model_validate({"revision": revision, "routes": routes, "observed": {"requests": requests}})


def test_what_is_in_flight_anywhere_counts():
    both = merged([said("new", 3, new=1, old=2), said("old", 9, old=4)])
    assert both is not None
    assert both.routes["old"].in_flight == 6
    assert both.routes["old"].state == "serving"
    assert both.routes["new"].in_flight == 1
    assert both.observed.requests == 9


def test_a_route_is_not_everywhere_until_all_have_it():
    assert merged([said("new", 1), said("old", 1)]).revision is None
    assert merged([said("new", 1), said("new", 1)]).revision == "new"


def test_tokens_of_all_gateways_count_and_other_figures_are_those_of_the_busiest():
    def gateway(requests: int, tokens: float | None, kv: float) -> GatewayReport:
        observed = {"requests": requests, "tokensPerSecond": tokens, "kvReserved": kv}
        return GatewayReport.model_validate({"revision": "new", "routes": {}, "observed": observed})

    both = merged([gateway(3, 10.0, 0.9), gateway(9, 30.0, 0.25), gateway(0, None, 0.0)])
    assert both is not None
    assert (both.observed.tokens_per_second, both.observed.kv_reserved, both.observed.requests) == (40.0, 0.25, 9)
