"""Traces as files: what is written is read again, and what is wrong is told with its path and the type expected there."""

import json
from pathlib import Path

import pytest

from splitinference.simulation.traces.synthetic import GENERATORS
from splitinference.simulation.traces.trace import LabelEvent, RateEvent, UpEvent, UtilizationEvent
from splitinference.simulation.traces.trace_file import TraceError, read_events, read_trace, write_trace
from tests.simulation.traces import a_trace

DROPPED = object()


def written(tmp_path: Path, **changes: object) -> Path:
    document = json.loads(a_trace(UtilizationEvent(at_s=10, node="a", value=0.5)).model_dump_json(exclude_none=True))
    for name, value in changes.items():
        document.pop(name) if value is DROPPED else document.update({name: value})
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(document))
    return path


def refused(path: Path) -> str:
    with pytest.raises(TraceError) as error:
        read_trace(path)
    return str(error.value)


@pytest.mark.parametrize("name", sorted(GENERATORS))
def test_a_trace_survives_its_file(name, tmp_path):
    trace = GENERATORS[name].make(GENERATORS[name].least_nodes, 3600, 3)
    write_trace(trace, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json") == trace


def test_events_may_be_in_a_csv_file(tmp_path):
    (tmp_path / "events.csv").write_text(
        "at_s,what,node,label,value\n1,utilization,a,,0.9\n2,up,b,,false\n3,rate,,,0.5\n4,label,a,trusted,\n5.5,label,a,trusted,true\n"
    )
    assert read_trace(written(tmp_path, events="events.csv")).events == (
        UtilizationEvent(at_s=1, node="a", value=0.9),
        UpEvent(at_s=2, node="b", value=False),
        RateEvent(at_s=3, value=0.5),
        LabelEvent(at_s=4, node="a", label="trusted", value=None),
        LabelEvent(at_s=5.5, node="a", label="trusted", value="true"),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"duration_s": "long"}, 'duration_s: input should be a valid number, unable to parse string as a number, is "long" (a string)'),
        ({"duration_s": None}, "duration_s: input should be a valid number, is null (null)"),
        ({"duration_s": -5}, "duration_s: input should be greater than 0, is -5 (a number)"),
        ({"requests_per_s": [1]}, "requests_per_s: input should be a valid number, is [1] (an array)"),
        ({"problem": DROPPED}, "problem: field required"),
        ({"problem": 7}, "problem: input should be a valid dictionary or instance of Problem, is 7 (a number)"),
        ({"speed": 3}, "speed: extra inputs are not permitted, is 3 (a number)"),
        ({"v": 2}, "v: input should be 1, is 2 (a number)"),
        ({"events": [{"at_s": 1, "what": "utilization", "node": "a", "value": 7}]}, "events[0].value: input should be less than or equal"),
        ({"events": [{"at_s": "soon", "what": "rate", "value": 1}]}, "events[0].at_s: input should be a valid number"),
        ({"events": [{"at_s": 1, "what": "label", "node": "a", "value": 7}]}, "events[0].label: field required"),
        ({"events": [{"at_s": 1, "what": "weather", "value": 7}]}, "events[0]: input tag 'weather' found using 'what' does not match"),
        ({"events": [{"at_s": 1, "what": "up", "node": "z", "value": True}]}, "events[0].node: expected the name of a node, is 'z'"),
        (
            {"events": [{"at_s": 1, "what": "rtt", "source": "a", "target": "z", "value": 2}]},
            "events[0].target: expected the name of two nodes or two zones, is 'z'",
        ),
        (
            {"events": [{"at_s": 9, "what": "rate", "value": 1}, {"at_s": 8, "what": "rate", "value": 1}]},
            "events[1].at_s: 8 comes after 9; events must be in order",
        ),
        ({"events": [{"at_s": 1e9, "what": "rate", "value": 1}]}, "events[0].at_s: 1e+09 is after the end, duration_s is 1200"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_path(changes, expected, tmp_path):
    path = written(tmp_path, **changes)
    assert f"{path}: {expected}" in refused(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1, column 1: expected JSON"),
        (b'{"v": 1,\n "name": }', "line 2, column 10: expected JSON"),
        (b"[1, 2]", "expected an object, is an array"),
        (b"\xff\xfe{}", "expected UTF-8 text"),
        (b'{"duration_s": NaN}', "duration_s: input should be a finite number"),
    ],
)
def test_what_is_no_trace_at_all_is_told(content, expected, tmp_path):
    path = tmp_path / "broken.json"
    path.write_bytes(content)
    found = refused(path)
    assert str(path) in found
    assert expected in found


def test_a_missing_file_is_told(tmp_path):
    assert refused(tmp_path / "no.json") == f"{tmp_path / 'no.json'}: cannot be read: No such file or directory"
    assert "no.csv: cannot be read" in refused(written(tmp_path, events="no.csv"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "expected columns at_s, what and value"),
        ("time,what,value\n", "expected columns at_s, what and value"),
        ("at_s,what,node,value\nsoon,utilization,a,0.5\n", 'line 2: at_s: input should be a valid number'),
        ("at_s,what,node,value\n1,utilization,a,0.5\n2,utilization,a,high\n", 'line 3: value: input should be a valid number'),
        ("at_s,what,node,value\n1,utilization,,0.5\n", "line 2: node: field required"),
        ("at_s,what,node,value\n1,utilization,a\n", "line 2: expected as many cells as the header has"),
        ("at_s,what,node,value\n1,rain,a,1\n", "line 2: Input tag 'rain'"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_csv_file_is_told_with_its_line(content, expected, tmp_path):
    path = tmp_path / "events.csv"
    path.write_text(content)
    with pytest.raises(TraceError) as error:
        read_events(path)
    assert expected in str(error.value)
