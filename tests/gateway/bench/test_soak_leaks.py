"""How the soak tells a leak from noise."""

import os
from pathlib import Path

import pytest

from tests.gateway.soak.leaks import MIB, Sample, Series, descriptors, memory, slope


def series(*memory_mib: float, every_s: float = 10.0) -> Series:
    made = Series("gateway", settled_s=0.0)
    for index, value in enumerate(memory_mib):
        made.add(index * every_s, value * MIB)
    return made


def test_the_slope_is_that_of_the_line_through_the_samples() -> None:
    assert slope([Sample(0, 10), Sample(10, 30), Sample(20, 50)]) == pytest.approx(2.0)
    assert slope([Sample(0, 10), Sample(10, 50), Sample(20, 10)]) == pytest.approx(0.0)
    assert slope([Sample(5, 10)]) == 0.0


def test_growth_beyond_the_share_and_the_fixed_part_is_a_leak() -> None:
    assert series(*(100 + 0.5 * i for i in range(20))).leak() is None  # 10 MiB, 16 and 3 % are allowed
    assert series(*(100 + 5 * i for i in range(20))).leak() == "gateway: memory grew by 95.0 MiB in 190 s, 20.4 are allowed"


def test_noise_and_memory_that_is_given_back_are_none() -> None:
    assert series(*(100 + 30 * (i % 2) for i in range(20))).leak() is None
    assert series(*(200 - 5 * i for i in range(20))).leak() is None


def test_the_warm_up_does_not_count_and_too_few_samples_say_nothing() -> None:
    late = Series("gateway", settled_s=60.0)
    for second in range(0, 100, 20):
        late.add(second, 1000.0 * second)
    assert [sample.seconds for sample in late.samples] == [60, 80]
    assert late.leak() == "gateway: only 2 samples of memory"


def test_memory_and_descriptors_are_those_of_processes_that_live(tmp_path: Path) -> None:
    own = os.getpid()
    before = descriptors([own])
    with (tmp_path / "open").open("w"):
        assert descriptors([own]) == before + 1
    assert memory([own]) > MIB
    assert memory([own, 2**22 + 1]) >= memory([2**22 + 1]) == 0
