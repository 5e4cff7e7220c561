"""`bench mlperf` with the real LoadGen against a gateway that serves; and what it says where it cannot measure."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitinference.cli.bench.loadgen.mlperf import highest_rate
from splitinference.cli.bench.loadgen.mlperf_loadgen import Percentiles, Result
from splitinference.cli.main import main
from tests.gateway.serving import MODEL, serving
from tests.gateway.toy_chain import toy_segments

COMMAND = (sys.executable, "-m", "splitinference.cli.main", "bench", "mlperf")


async def asked(url: str, *words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "--url", url, "--quick", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.anyio
async def test_loadgen_plays_all_scenarios(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("toy-a", "toy-b")) as world:
        status, out, err = await asked(world.url, "--name", MODEL, "--tokens", "4", "--bounds", "60000,60000", "--json")
    assert status == 0, err
    report = json.loads(out)
    assert "not an MLPerf result" in report["note"]
    (setup,) = report["setups"]
    results = {result["scenario"]: result for result in setup["results"]}
    assert set(results) == {"SingleStream", "MultiStream", "Server", "Offline"}
    for result in results.values():
        assert result["failed"] == 0
        assert result["queries"] >= 1
        assert 0 < result["latency_ms"]["p50"] <= result["latency_ms"]["p99"]
    assert results["SingleStream"]["ttft_ms"]["p50"] < results["SingleStream"]["latency_ms"]["p50"]
    assert results["Offline"]["tokens_per_second"] == pytest.approx(4 * results["Offline"]["samples_per_second"], rel=0.01)
    assert setup["rate"]["requests_per_second"] > 0, "a minute is enough for four tokens"
    assert all(tried["keeps_bounds"] for tried in setup["rate"]["tried"])


@pytest.mark.anyio
async def test_bounds_that_nothing_keeps_give_no_rate(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("toy-a")) as world:
        words = ("--name", MODEL, "--tokens", "4", "--bounds", "0.001,0.001", "--scenario", "Server")
        status, out, err = await asked(world.url, *words)
    assert status == 0, err
    assert "highest rate that keeps p99 0.001 and 0.001 ms: 0 requests/s" in out
    assert "not an MLPerf result" in out


@pytest.mark.anyio
async def test_requests_that_fail_are_told_and_make_the_run_fail(tmp_path: Path, model_path: Path) -> None:
    async with serving(tmp_path, model_path, await toy_segments("toy-a")) as world:
        status, out, err = await asked(world.url, "--name", "nobody", "--tokens", "4", "--scenario", "Offline", "--json")
    assert status == 1
    assert "requests failed, the first one:" in err
    assert "nobody" in err
    assert "Traceback" not in err
    assert json.loads(out)["setups"][0]["results"][0]["failed"] > 0


def result(rate: float, *, keeps: bool) -> Result:
    ms = Percentiles(p50=1.0, p90=1.0, p99=1.0)
    return Result(scenario="Server", target_qps=rate, latency_ms=ms, queries=4, failed=0, keeps_bounds=keeps, loadgen_valid=False)


@pytest.mark.parametrize("least", [0.0, 0.7, 3.3, 9.9, 20.0])
def test_the_search_comes_near_to_the_highest_rate(least: float) -> None:
    found = highest_rate(lambda rate: result(rate, keeps=rate <= least), 10.0, tries=12)
    assert found.requests_per_second <= least
    assert found.requests_per_second >= min(least, 10.0) / 1.2
    assert len(found.tried) <= 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--bounds", "fast"), "--bounds fast: expected llama3.1-8b"),
        (("--bounds", "0,10"), "expected two numbers above 0"),
        (("--cores", "1,1"), "--cores is for segments that run here"),
        (("--prompts", "/nonexistent"), "No such file"),
    ],
)
def test_what_it_cannot_measure_is_said(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "mlperf", "--url", "http://127.0.0.1:9", *words]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_without_loadgen_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "mlperf_loadgen.py").write_text("raise ImportError('hidden by a test')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done: Any = subprocess.run([*COMMAND, "--url", "http://127.0.0.1:9"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "bench mlperf needs MLPerf's LoadGen: pip install 'splitinference[mlperf]'\n"


def test_a_server_that_is_not_there_is_a_failed_run_and_no_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    words = [*COMMAND, "--url", "http://127.0.0.1:9", "--quick", "--scenario", "SingleStream"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    assert "requests failed" in done.stderr
    assert "Traceback" not in done.stderr
