"""The command: its table, its JSON, its pictures, and what it says about input that it cannot use."""

import argparse
import json
from pathlib import Path

import pytest

from splitinference.cli.simulate import POLICIES, TRACES, register
from splitinference.simulation.policies import PolicyName
from splitinference.simulation.traces.synthetic import GENERATORS
from splitinference.simulation.traces.trace import UtilizationEvent
from splitinference.simulation.traces.trace_file import write_trace
from tests.simulation.traces import a_trace


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser(prog="splitinference")
    register(parser.add_subparsers(required=True))
    args = parser.parse_args(["simulate", *map(str, arguments)])
    code: int = args.run(args)
    return code


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    write_trace(a_trace(UtilizationEvent(at_s=300, node="a", value=0.95)), path)
    return path


def test_the_names_in_the_help_are_those_that_there_are():
    """The help must not import the simulation, whose packages may be missing; so it has the names itself."""
    assert set(POLICIES) == {policy.value for policy in PolicyName}
    assert set(TRACES) == set(GENERATORS)


def test_policies_stand_side_by_side(trace_file, capsys):
    assert run("--trace", trace_file, "--policy", "static,adaptive") == 0
    out = capsys.readouterr().out
    for row in ("static", "adaptive", "latency, p50 / p95", "throughput", "utilization", "SLO met", "privacy violations", "weights loaded"):
        assert row in out


def test_json_has_figures_moves_and_a_time_line(trace_file, capsys):
    assert run("--trace", trace_file, "--policy", "all", "--json") == 0
    found = {report["policy"]: report for report in json.loads(capsys.readouterr().out)}
    assert list(found) == ["static", "adaptive", "edgeshard-static", "greedy-reactive"]
    assert found["adaptive"]["moves"] == {"migration": 1}
    assert found["adaptive"]["move_list"][0]["reason"] in ("UtilizationShifted", "SloViolated", "BetterPlan")
    assert found["adaptive"]["slo_met"] > found["static"]["slo_met"]
    assert len(found["static"]["timeline"]) == 144


@pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml")])
def test_a_picture_is_drawn_and_the_same_run_draws_the_same_picture(name, begins, trace_file, tmp_path, capsys):
    first, second = tmp_path / name, tmp_path / f"again-{name}"
    for path in (first, second):
        assert run("--trace", trace_file, "--policy", "all", "--picture", path) == 0
    assert first.read_bytes().startswith(begins)
    assert first.read_bytes() == second.read_bytes()


def test_a_synthetic_trace_can_be_written_and_run_from_its_file(tmp_path, capsys):
    path = tmp_path / "step.json"
    assert run("--trace", "utilization-step", "--hours", 0.5, "--policy", "static", "--json", "--write-trace", path) == 0
    made = capsys.readouterr().out
    assert run("--trace", path, "--policy", "static", "--json") == 0
    assert capsys.readouterr().out == made


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--trace", "quiet", "--policy", "clever"), "--policy: expected some of static, adaptive"),
        (("--trace", "quiet", "--policy", ","), "--policy: expected some of"),
        (("--trace", "loud"), "--trace: expected a file or one of mec-day-night"),
        (("--trace", "no.json"), "no.json: cannot be read"),
        (("--trace", "quiet", "--nodes", "2"), "--nodes: quiet needs at least 4, is 2"),
        (("--trace", "quiet", "--picture", "p.gif"), "expected a file that ends in .svg or .png"),
        (("--trace", "quiet", "--hours", "0.1", "--picture", "/nowhere/p.png"), "/nowhere/p.png: cannot be written"),
        (("--trace", "quiet", "--hours", "0.1", "--write-trace", "/nowhere/t.json"), "/nowhere/t.json: cannot be written"),
    ],
)
def test_what_cannot_be_used_is_said(arguments, expected, capsys):
    assert run(*arguments) == 2
    assert expected in capsys.readouterr().err


def test_sizes_are_for_synthetic_traces(trace_file, capsys):
    assert run("--trace", trace_file, "--nodes", 10) == 2
    assert "--nodes and --hours are for synthetic traces" in capsys.readouterr().err


def test_no_plan_to_start_with_is_said(tmp_path, capsys):
    path = tmp_path / "one.json"
    write_trace(a_trace(nodes=1), path)
    assert run("--trace", path, "--policy", "adaptive") == 1
    assert "no plan to start with" in capsys.readouterr().err
