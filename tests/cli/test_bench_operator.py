"""Figures of `bench operator` from the operator's own metrics: quantiles within buckets, and what is not there."""

import os

import pytest

from splitinference.cli.bench.control.operator import children, quantile_ms, resident_bytes
from splitinference.cli.main import main

INF = float("inf")


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ([(0.01, 50), (0.02, 100), (INF, 100)], 0.5, 10.0),
        ([(0.01, 50), (0.02, 100), (INF, 100)], 0.95, 19.0),
        ([(0.01, 0), (0.05, 10), (INF, 10)], 0.5, 30.0),
        ([(0.01, 90), (0.02, 90), (INF, 100)], 0.95, 20.0),
        ([(0.01, 0), (INF, 0)], 0.5, None),
        ([], 0.5, None),
    ],
)
def test_a_quantile_is_spread_evenly_within_its_bucket(buckets, share, expected):
    assert quantile_ms(buckets, share) == expected


def test_memory_is_that_of_the_process_and_nothing_for_one_that_is_gone():
    assert resident_bytes(os.getpid()) > 2**20
    assert resident_bytes(2**22 + 1) == 0
    assert children(2**22 + 1) == []


def test_a_program_that_is_not_there_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["bench", "operator", "--quick", "--programs", str(tmp_path)]) == 1
    assert "etcd is neither in --programs nor on the PATH" in capsys.readouterr().err
