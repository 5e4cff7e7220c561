"""Whatever a file or an argument says, the answer is a plan, or a sentence that names where it is wrong; never a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from splitinference.cli.main import main
from splitinference.cli.plan.input import UnusableError, problem_from_file, read_as
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Workload
from tests.core.planner_problems import a_node, a_profile
from tests.examples import examples

SETTINGS = examples(300)


def a_problem() -> Problem:
    link = Link(source="n0", target="n1", quality=LinkQuality(bandwidth_bytes_per_s=1e8, rtt_ms=1.0))
    snapshot = Snapshot(nodes=(a_node("n0"), a_node("n1", free_mib=300)), network=Network(links=(link,), ingress="gw"))
    return Problem(profile=a_profile((40, 60)), snapshot=snapshot, workload=Workload(max_context_tokens=256), serving=((0, 2, "n0"),))


def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(a_problem().model_dump_json())
    return found


def refusal(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(UnusableError) as caught:
        problem_from_file(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def changed(where: str, value: object) -> str:
    found = content()
    *path, last = [int(part) if part.isdecimal() else part for part in where.split(".")]
    here: Any = found
    for part in path:
        here = here[part]
    here[last] = value
    return json.dumps(found)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("snapshot.network.links.0.target", "nowhere", "snapshot.network.links.0.target: 'nowhere' is unknown; expected a node"),
        ("serving", [[0, 2, "gone"]], "serving.0: node 'gone' is unknown; expected a node of the snapshot"),
        ("serving", [[0, 9, "n0"]], "serving.0: layers [0, 9) are unknown; expected 0 <= start < end <= 2"),
        (
            "snapshot.nodes.0.layer_times",
            [{"layer": 7, "prefill_ms_per_token": 1, "decode_ms_per_token": 1}],
            "snapshot.nodes.0.layer_times.0.layer: 7 is unknown; expected at most 1",
        ),
        (
            "snapshot.nodes.0.layer_times",
            [{"layer": 0, "processor": "gpu9", "prefill_ms_per_token": 1, "decode_ms_per_token": 1}],
            "snapshot.nodes.0.layer_times.0.processor: 'gpu9' is unknown; expected one of ['']",
        ),
        ("constraints.pins", [{"start": 0, "end": 1, "node": "gone"}], "constraints.pins.0.node: 'gone' is unknown"),
        ("profile.layers.0.weight_bytes", 2**70, "expected at most 1152921504606846976"),
        ("snapshot.nodes.0.memory_free_bytes", 2**63, "n0: memory_free_bytes is 9223372036854775808, expected at most"),
        ("workload.prompt_tokens", -1, "workload.prompt_tokens: Input should be greater than or equal to 1 (given: -1)"),
    ],
)
def test_what_is_wrong_in_a_problem_is_said_with_file_path_and_expected_value(tmp_path: Path, where: str, value: object, said: str) -> None:
    assert said in refusal(tmp_path / "problem.json", changed(where, value))


def test_broken_json_is_said_by_line_and_column_without_the_file_in_it(tmp_path: Path) -> None:
    text = json.dumps(content(), indent=1)
    said = refusal(tmp_path / "problem.json", text[:-20] + "oops")
    assert "is not JSON" in said
    assert "line" in said
    assert len(said) < 300
    assert "not UTF-8" in refusal(tmp_path / "problem.json", b"\xff\xfe{}")
    assert "nested too deeply" in refusal(tmp_path / "problem.json", "[" * 200_000)


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    text = json.dumps(content())
    assert "the key 'slo' occurs twice" in refusal(tmp_path / "problem.json", text[:-1] + ', "slo": {}}')


def test_a_broken_hint_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problem, hint = tmp_path / "problem.json", tmp_path / "hint.json"
    problem.write_text(a_problem().model_dump_json())
    hint.write_text('{"pipelines": 3}')
    assert main(["plan", "--problem", str(problem), "--hint", str(hint)]) == 2
    said = capsys.readouterr().err
    assert f"{hint} is not a plan:" in said
    assert "model_digest: Field required" in said


@pytest.mark.parametrize("option", ["--seconds", "--memory-mib"])
@pytest.mark.parametrize("value", ["inf", "nan", "1e10", "-1", "0", "x", "", "9" * 400])
def test_limits_out_of_range_are_refused_with_what_is_expected(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--problem", "none.json", f"{option}={value}"])
    assert caught.value.code == 2
    assert f"argument {option}: expected" in capsys.readouterr().err


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


@SETTINGS
@given(st.data())
def test_any_value_anywhere_in_a_problem_is_accepted_or_refused_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    found = content()
    path = data.draw(st.sampled_from([place for place in places(found) if place]))
    here: Any = found
    for part in path[:-1]:
        here = here[part]
    here[path[-1]] = data.draw(JSON | st.sampled_from([2**63, -(2**63), 1e308, 5e-324, "", [], {}]))
    file = tmp_path_factory.mktemp("fuzz") / "problem.json"
    file.write_text(json.dumps(found))
    said = str(file)
    try:
        problem_from_file(file)
    except UnusableError as error:
        said = str(error)
    assert str(file) in said
    assert len(said) < 5_000


@SETTINGS
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
@example(b"{")
@example(b"1" * 50)
def test_any_bytes_are_no_plan(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("fuzz") / "plan.json"
    file.write_bytes(data)
    with pytest.raises(UnusableError, match="is not"):
        read_as(Plan, file, "a plan")


WORDS = st.sampled_from(
    ["plan", "bench", "status", "--problem", "-f", "--seconds", "--memory-mib", "--json", "--hint", "--svg", "none.json", "/"]
)


@examples(100)
@given(st.lists(WORDS | st.text(max_size=6).filter(lambda word: "\0" not in word), max_size=5))
def test_any_command_line_of_plan_ends_with_a_status(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(["plan", "--problem", "/nonexistent/none.json", *words]))
    assert caught.value.code in (0, 2)
    capsys.readouterr()
