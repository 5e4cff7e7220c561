"""Controllers of a fleet on traces that are made up: what they spend, what they serve, and what a trace must look like."""

import json
import math
from pathlib import Path

import pytest

from splitinference.cli.main import main
from splitinference.simulation.fleet.controllers import Fleet, Ours, StaticPeak, controllers
from splitinference.simulation.fleet.kinds import MOST_BUSY, Slo, kinds
from splitinference.simulation.fleet.request_traces import FILES, Group, RequestTraceError, read_requests
from splitinference.simulation.fleet.run import peak_of, simulate_fleet


def day(peak: float = 40.0, hours: int = 4) -> list[Group]:
    """Load that swells and ebbs twice, ten seconds by ten seconds."""
    steps = hours * 360
    return [Group(10.0 * i, 10 * peak * (0.1 + 0.45 * (1 - math.cos(4 * math.pi * i / steps))), 1155, 211) for i in range(steps)]


def test_following_the_load_costs_less_than_the_peak_and_keeps_the_slo() -> None:
    reports = {one.name: simulate_fleet(day(), 10.0, one) for one in controllers()}
    static, ours = reports["static peak"], reports["ours"]
    assert static.within_slo == 1.0
    assert ours.within_slo > 0.99
    assert ours.cost < 0.8 * static.cost
    assert ours.energy_kwh < static.energy_kwh
    assert reports["ours, low clocks"].energy_kwh < ours.energy_kwh
    assert static.moves == 0 < ours.moves


def test_energy_and_cost_are_those_of_what_runs() -> None:
    groups = [Group(10.0 * i, 10.0, 1000, 100) for i in range(360)]
    report = simulate_fleet(groups, 10.0, StaticPeak())
    kind = kinds()[0]
    carries, work = kind.carries(1000, 100, Slo()), kind.work_s(1000, 100)
    number = math.ceil(1.0 / 0.8 / carries)
    assert report.mean_pipelines == number
    assert report.cost == pytest.approx(number * kind.cost)
    watts = number * kind.watts(1.0 * work / number)
    assert report.energy_kwh == pytest.approx(watts / 1e3)


def test_too_much_load_breaks_the_slo_and_nothing_is_lost_from_the_count() -> None:
    crowd = [Group(10.0 * i, 50_000.0, 1000, 100) for i in range(30)]
    report = simulate_fleet(crowd, 10.0, Ours())
    assert report.requests == 1_500_000
    assert report.within_slo < 0.5


def test_kinds_carry_no_more_than_their_slo_and_their_time_allow() -> None:
    for kind in kinds():
        rate = kind.carries(1000, 200, Slo())
        busy = rate * kind.work_s(1000, 200)
        assert busy <= MOST_BUSY + 1e-9
        if rate:
            assert kind.token_s / (1 - busy) <= Slo().token_s * (1 + 1e-9)
        assert kind.carries(1000, 200, Slo(token_s=kind.token_s / 2)) == 0.0
        assert kind.carries(1000, 200, Slo(), low_clock=True) <= rate


def test_the_cheapest_fleet_is_no_dearer_than_the_fastest() -> None:
    fleet = Fleet(kinds(), Slo(), peak_of(day()))
    carries, price = fleet.carries(fleet.peak), [kind.cost for kind in kinds()]
    for rate in (0.5, 3.0, 17.0, 60.0):
        cheap, fast = fleet.cheapest(rate, carries, price), fleet.fastest(rate, carries)
        assert sum(n * c for n, c in zip(cheap, carries, strict=True)) >= rate
        assert sum(n * p for n, p in zip(cheap, price, strict=True)) <= sum(n * p for n, p in zip(fast, price, strict=True))
        more = fleet.cheapest(rate, carries, price, least=(1, 1, 0, 0))
        assert more[0] >= 1
        assert more[1] >= 1


def test_prompts_that_begin_alike_are_used_again_where_they_are_held() -> None:
    groups = [Group(float(i), 1.0, 4096, 50, blocks=tuple(100 * (i % 7) + n for n in range(8))) for i in range(2000)]
    ours, static = simulate_fleet(groups, 10.0, Ours()), simulate_fleet(groups, 10.0, StaticPeak())
    assert ours.reuse is not None
    assert static.reuse is not None
    assert ours.reuse > 0.5


def write_traces(folder: Path) -> None:
    """Small files in the form of each published trace."""
    lines = [f"2023-11-16 18:{i // 60:02}:{i % 60:02}.0000000,{100 + i},{10 + i % 5}" for i in range(300)]
    for name in ("azure-2023-conv", "azure-2023-code"):
        (folder / FILES[name]).write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n")
    rates = [f"2024-05-12T00:{7 * i:02}:00Z,{600 + 100 * i},1,1" for i in range(8)]
    (folder / FILES["azure-2024-week"]).write_text("\n".join(["utc,per_minute,low,high", *rates]) + "\n")
    rows = [{"timestamp": 1000 * i, "input_length": 1000, "output_length": 50, "hash_ids": [0, i]} for i in range(100)]
    (folder / FILES["mooncake"]).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("name", FILES)
def test_every_published_form_is_read_and_simulated(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    write_traces(tmp_path)
    assert main(["simulate", "--trace", name, "--trace-folder", str(tmp_path), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["policy"] for report in reports] == [one.name for one in controllers()]
    assert (reports[0]["reuse"] is not None) == (name == "mooncake")


def test_a_part_of_a_trace_is_the_same_part_each_time(tmp_path: Path) -> None:
    write_traces(tmp_path)
    whole, _ = read_requests("azure-2023-conv", tmp_path)
    third, _ = read_requests("azure-2023-conv", tmp_path, 1 / 3)
    assert abs(len(third) - len(whole) / 3) <= 1
    assert third == read_requests("azure-2023-conv", tmp_path, 1 / 3)[0]
    rates, _ = read_requests("azure-2024-week", tmp_path, 2.0)
    assert rates[0].count == pytest.approx(2 * 600 / 6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no request"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "holds no request"),
        ("when,what\n1,2\n", "not in the form"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,2\n", "not in the form"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.0000000,1,2\n2023-11-16 18:17:02.0000000,1,2\n",
            "order of time",
        ),
    ],
)
def test_a_file_in_another_form_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / FILES["azure-2023-conv"]).write_text(content)
    with pytest.raises(RequestTraceError, match=words):
        read_requests("azure-2023-conv", tmp_path)


def test_without_the_folder_or_the_file_it_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--trace", "mooncake"]) == 2
    assert "needs --trace-folder" in capsys.readouterr().err
    assert main(["simulate", "--trace", "mooncake", "--trace-folder", str(tmp_path)]) == 2
    assert "there is no such file" in capsys.readouterr().err
