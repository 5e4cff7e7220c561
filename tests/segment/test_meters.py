"""Metrics reach Triton each second, whatever one of them does; torch and Triton are not needed."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from splitinference_segment.cache.kv import KvUse
from splitinference_segment.meters import GAUGES, Meters, held
from splitinference_segment.peers.links import Links

USE = KvUse(2, 4096, 1024, 64, 1)


class Family:
    """A metric family of Triton's Python backend, with its values."""

    COUNTER, GAUGE = "counter", "gauge"
    values: dict[str, float]

    def __init__(self, name: str, description: str, kind: str) -> None:
        self.name = name.removeprefix("splitinference_segment_")

    def Metric(self, labels: Mapping[str, str]) -> Any:  # noqa: N802 - as Triton names it
        family = self

        class Metric:
            def increment(self, value: float) -> None:
                family.values[family.name] = family.values.get(family.name, 0) + value

            def set(self, value: float) -> None:
                family.values[family.name] = value

        return Metric()


@pytest.fixture
def api() -> Any:
    values: dict[str, float] = {}
    return type("Api", (), {"MetricFamily": type("Told", (Family,), {"values": values}), "values": values})


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_segment_holds_has_a_family_each() -> None:
    links = Links("here")
    links.hop("there", "node-b", 100, 0.001)
    names = {name for name, _, _ in (*held(USE, {"a": 5}), *links.measures())}
    assert names <= set(GAUGES)
    assert {name for name in GAUGES if not name.startswith("link_")} <= names


def test_gauges_are_those_of_the_moment(api: Any) -> None:
    adapters: dict[str, int] = {}
    meters = Meters("s", api, lambda: held(USE, adapters))
    until(lambda: api.values.get("sequences") == 2)
    assert api.values["adapter_bytes"] == 0
    adapters["a"] = 5
    until(lambda: api.values["adapter_bytes"] == 5)
    meters.stop()


def test_a_fault_in_a_gauge_is_logged_and_the_next_second_comes(api: Any, caplog: pytest.LogCaptureFixture) -> None:
    faults = iter([True])

    def gauges() -> list[tuple[str, float, Mapping[str, str]]]:
        return [("no_such_gauge" if next(faults, False) else "sequences", 3.0, {})]

    meters = Meters("s", api, gauges)
    meters.add("errors_total", 1, code="internal")
    until(lambda: api.values.get("sequences") == 3)
    assert api.values["errors_total"] == 1
    assert [record.message for record in caplog.records] == ["metrics were not handed over"]
    meters.stop()


def test_a_counter_that_is_not_listed_is_the_callers_fault(api: Any) -> None:
    meters = Meters("s", api, list)
    with pytest.raises(KeyError, match="no_such_counter"):
        meters.add("no_such_counter", 1)
    meters.stop()
