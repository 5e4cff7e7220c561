"""What is missing is said in one sentence each, with what to do."""

from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster.machine.preflight import Facts, busy, problems

GOOD = Facts(
    root=True,
    engine=True,
    private=False,
    debian=True,
    apt=True,
    absent=(),
    public=True,
    to_build=(),
    debian_images=False,
    go=True,
    disk_gib=50,
    cache=Path("/home/me/.cache/splitinference"),
    writable=True,
    memory_gib=16,
    busy_ports=(),
)


def test_nothing_is_said_when_nothing_is_missing():
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (replace(GOOD, engine=False, root=False), ("No Docker engine answers", "start Docker", "root")),
        (replace(GOOD, absent=("jq", "debootstrap"), root=False), ("sudo apt-get install jq debootstrap",)),
        (replace(GOOD, absent=("jq",), apt=False), ("install jq with your package manager",)),
        (replace(GOOD, debian_images=True, root=False), ("public images cannot be pulled", "run this as root")),
        (replace(GOOD, go=False, to_build=("kubernetes", "etcd")), ("Go 1.26", "kubernetes, etcd", "https://go.dev/dl")),
        (replace(GOOD, disk_gib=3.4), ("3 GiB free", "SPLITINFERENCE_CACHE")),
        (replace(GOOD, writable=False), ("cannot be written to", "SPLITINFERENCE_CACHE")),
        (replace(GOOD, memory_gib=4), ("4 GiB of memory", "CLUSTER=current")),
        (replace(GOOD, busy_ports=(8080,)), ("Port 8080 is in use",)),
    ],
)
def test_each_missing_thing_is_one_sentence_with_a_remedy(facts: Facts, says: tuple[str, ...]):
    (sentence,) = problems(facts)
    assert [part for part in says if part not in sentence] == []
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_building_from_nothing_needs_more_disk():
    building = replace(GOOD, disk_gib=12, debian_images=True, to_build=("kubernetes", "etcd"))
    assert problems(building)
    assert problems(replace(building, debian_images=False, to_build=())) == []


def test_all_that_is_missing_is_said_at_once():
    assert len(problems(replace(GOOD, engine=False, root=False, disk_gib=1, memory_gib=1))) == 3


def test_a_port_is_busy_while_something_listens(unused_port: int, listener: int):
    assert busy(listener)
    assert not busy(unused_port)
