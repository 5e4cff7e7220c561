"""What Prometheus says, and what it does not say."""

import json
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from splitinference.adapters.promql.prometheus import MOST_SERIES, PrometheusMetrics, chosen, samples
from splitinference.adapters.promql.queries import SETS
from splitinference.settings import Settings
from tests.adapters.serving import Request, Response, serving


def series(value: object, kind: str = "value", **labels: str) -> dict[str, Any]:
    return {"metric": {"si_kind": kind, **labels}, "value": [1.0, str(value)]}


def test_a_value_comes_with_its_age():
    read = samples([series(1.5, node="a"), series(12, kind="age", node="a")], ("node",))
    assert (read.by_name["a"].value, read.by_name["a"].age_seconds) == (1.5, 12)
    assert not read.problem
    assert not read.notes


def test_several_series_for_one_name_are_none():
    read = samples([series(1, node="a", x="1"), series(2, node="a", x="2"), series(1, kind="age", node="a")], ("node",))
    assert not read.by_name
    assert "a: 2 series" in read.notes[0]


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf"])
def test_what_is_no_number_is_none_and_not_zero(value):
    assert samples([series(value, node="a"), series(3, kind="age", node="a")], ("node",)).by_name["a"].value is None


def test_a_value_of_unknown_age_is_not_taken():
    read = samples([series(1, node="a")], ("node",))
    assert not read.by_name
    assert "age is unknown" in read.notes[0]


@pytest.mark.parametrize(("ages", "read"), [((7,), 7), ((3, 90), 90), ((-300,), -300), ((5, -300), -300), (("NaN", 4), 4)])
def test_a_sample_from_the_future_keeps_its_age_so_that_it_can_be_doubted(ages, read):
    found = samples([series(1, node="a"), *(series(age, kind="age", node="a", x=str(n)) for n, age in enumerate(ages))], ("node",))
    assert found.by_name["a"].age_seconds == read


@pytest.mark.parametrize("age", ["NaN", "+Inf", "-Inf"])
def test_an_age_that_is_no_number_is_not_known(age):
    found = samples([series(1, node="a"), series(age, kind="age", node="a")], ("node",))
    assert not found.by_name
    assert "age is unknown" in found.notes[0]


@pytest.mark.parametrize(
    "odd", [{}, {"metric": {}}, {"metric": {"node": "a", "si_kind": "value"}, "value": []}, "text", None, {"metric": None}]
)
def test_a_series_of_no_form_is_left_out_and_the_rest_is_read(odd):
    found = samples([odd, series(1, node="b"), series(2, kind="age", node="b")], ("node",))
    assert list(found.by_name) == ["b"]
    assert "was ignored" in found.notes[0]


def test_labels_that_tell_whom_a_series_is_about_come_along_with_the_machines_own_name():
    at = {"instance": "10.0.0.1:9100", "job": "node"}
    uname = series(1, kind="name", nodename="m1", **at), series(1, kind="name", nodename="m2", instance="10.0.0.2:9100", job="node")
    read = samples([series(2, **at), series(5, kind="age", **at), *uname], (), ("instance", "job"))
    (sample,) = read.by_name.values()
    assert sample.labels == {**at, "nodename": "m1"}
    twice = samples(
        [series(2, **at), series(5, kind="age", **at), uname[0], series(1, kind="name", nodename="m3", **at)], (), ("instance", "job")
    )
    assert [found.labels for found in twice.by_name.values()] == [at], "a machine that was renamed has no name until one of them is gone"


def test_too_many_series_are_a_problem():
    assert "more than" in samples([{}] * (2 * MOST_SERIES + 1), ("node",)).problem


def test_a_label_without_end_is_cut():
    read = samples([series(1, node="n" * 10_000), series(1, kind="age", node="n" * 10_000)], ("node",))
    assert [len(name) for name in read.by_name] == [512]


def test_names_of_several_labels():
    read = samples(
        [series(1, namespace="n", pod="p"), series(1, kind="age", namespace="n", pod="p"), series(4, pod="lost")], ("namespace", "pod")
    )
    assert list(read.by_name) == ["n/p"]
    assert "without namespace and pod" in read.notes[0]


@pytest.mark.parametrize("answer", [{"resultType": "scalar"}, None, "text"])
def test_an_answer_that_is_no_vector_is_a_problem(answer):
    assert samples(answer, ("node",)).problem


def vector(*found: dict[str, Any]) -> Response:
    return Response(json.dumps({"status": "success", "data": {"resultType": "vector", "result": list(found)}}).encode())


def metrics(port: int, **settings: Any) -> PrometheusMetrics:
    return PrometheusMetrics(Settings(prometheus_url=f"http://127.0.0.1:{port}", **settings))


def test_a_server_is_asked_for_value_and_age_at_once():
    asked: list[Request] = []

    def answer(request: Request) -> Response:
        asked.append(request)
        return vector(series(0.4, node="kind-worker"), series(2, kind="age", node="kind-worker"))

    with serving(answer) as port:
        read = metrics(port, query_set="cadvisor", metrics_window_seconds=30).node_cpu_cores()
    (sample,) = read.by_name.values()
    assert (sample.value, sample.age_seconds, sample.labels) == (0.4, 2, {"node": "kind-worker"})
    query = parse_qs(urlsplit(asked[0].path).query)["query"][0]
    assert "[30s]" in query
    assert "{window}" not in query
    assert len(asked) == 1


def test_an_error_of_the_server_is_a_problem_with_its_address():
    with serving(lambda _: Response(b'{"status":"error","error":"parse error"}', status=400)) as port:
        read = metrics(port).node_cpu_cores()
        assert f"127.0.0.1:{port}" in read.problem
        assert "parse error" in read.problem


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"data": null}'])
def test_something_else_than_prometheus_is_a_problem(body):
    with serving(lambda _: Response(body)) as port:
        assert "Prometheus" in metrics(port).node_cpu_cores().problem


def test_nobody_there_is_a_problem_at_once():
    with serving(lambda _: vector()) as port:
        pass
    problem = metrics(port).node_cpu_cores().problem
    assert "cannot be reached" in problem
    assert problem == metrics(port).node_cpu_cores().problem, "a condition's message must not change by itself"


def test_a_slow_server_is_a_problem_within_the_time_limit():
    read_ended = threading.Event()

    def slow(_: Request) -> Response:
        read_ended.wait(60)
        return vector()

    with serving(slow) as port:
        read = metrics(port, prometheus_timeout_seconds=0.2).node_cpu_cores()
        read_ended.set()
    assert "did not answer within 0.2 s" in read.problem


@pytest.mark.parametrize("seconds", [3.0, 0.25])
def test_the_time_limit_is_a_duration_as_prometheus_reads_it(seconds):
    """Prometheus has no fractions: it refuses `3.0s`."""
    asked: list[str] = []

    def answer(request: Request) -> Response:
        asked.extend(parse_qs(urlsplit(request.path).query)["timeout"])
        return vector()

    with serving(answer) as port:
        metrics(port, prometheus_timeout_seconds=seconds).node_cpu_cores()
    assert asked == [f"{seconds * 1000:.0f}ms"]


def test_no_prometheus_set_is_a_problem():
    assert "no Prometheus is set" in PrometheusMetrics(Settings(prometheus_url="")).node_cpu_cores().problem


def test_what_a_set_does_not_have_is_no_problem():
    read = PrometheusMetrics(Settings(query_set="cadvisor")).node_memory_available_bytes()
    assert (read.by_name, read.problem) == ({}, "")


def test_a_query_of_the_users_takes_the_place_of_the_sets():
    queries = chosen(Settings(query_node_cpu_cores="my:cores{a='b'}"))
    assert queries.node_cpu_cores.value == "my:cores{a='b'}"
    assert queries.segment_cpu_cores == SETS["nodeExporter"].segment_cpu_cores


@pytest.mark.parametrize("name", sorted(SETS))
def test_no_set_takes_silence_for_idleness(name):
    """`rate` counts the time since the last sample as idle: a node that goes silent would look free. `deriv` does not."""
    for query in (SETS[name].node_cpu_cores, SETS[name].segment_cpu_cores):
        assert "rate(" not in query.value
        assert "deriv(" in query.value
        assert "resets(" in query.value, "a counter that started anew has no slope"
