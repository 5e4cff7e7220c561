"""Requests in flight, as Prometheus has them of gateways."""

import json
from urllib.parse import parse_qs, urlsplit

import pytest

from splitinference.settings import Settings
from splitinference.ui.origins.kube import PageMetrics
from splitinference.ui.page.resources import Load
from tests.adapters.serving import Request, Response, serving


def loads_of(values: dict[str, tuple[str, str]], asked: list[str] | None = None):
    """What the page makes of a server that says for each metric a value and an age."""

    def answer(request: Request) -> Response:
        words = parse_qs(urlsplit(request.path).query) or parse_qs(request.body.decode())
        query = words["query"][0]
        if asked is not None:
            asked.append(query)
        result = []
        for metric, (value, age) in values.items():
            if metric in query:
                about = {"namespace": "team", "pod": "chat-gateway-1"}
                result += [{"metric": {**about, "si_kind": kind}, "value": [0, said]} for kind, said in (("value", value), ("age", age))]
        return Response(json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode())

    with serving(answer) as port:
        return PageMetrics(Settings(prometheus_url=f"http://127.0.0.1:{port}")).loads()


RUNNING, WAITING = "splitinference_gateway_running_sequences", "splitinference_gateway_queue_depth"


def test_running_and_waiting_requests_are_those_of_the_gateways_pod():
    asked: list[str] = []
    assert loads_of({RUNNING: ("3", "2"), WAITING: ("1", "2")}, asked) == {("team", "chat-gateway-1"): Load(3, 1)}
    assert "max by (namespace, pod)" in asked[0]


@pytest.mark.parametrize(("value", "age"), [("NaN", "1"), ("-1", "1"), ("1e300", "1"), ("3", "600"), ("3", "-5")])
def test_counts_that_cannot_be_or_are_old_are_not_known(value: str, age: str):
    found = loads_of({RUNNING: (value, age), WAITING: ("0", "1")})
    assert found["team", "chat-gateway-1"].running is None


def test_where_nobody_scrapes_gateways_nothing_is_known():
    assert loads_of({}) == {}
