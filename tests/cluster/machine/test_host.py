"""What is ours on the machine is told from what is not."""

import json
from pathlib import Path

import pytest

from e2e.cluster.machine import engine, host
from e2e.cluster.machine.host import Traces, wanted, with_mark
from e2e.cluster.settings import Settings

RULES = (
    "-P FORWARD ACCEPT",
    "-N DOCKER",
    "-A FORWARD -i si-1 -m comment --comment si-1 -j ACCEPT",
    '-A FORWARD -i si-2 -m comment --comment "si-2" -j ACCEPT',
    "-A FORWARD -o docker0 -j DOCKER",
    '-A FORWARD -m comment --comment "not si-1" -j DROP',
)


def test_only_rules_with_our_mark_are_ours():
    assert with_mark(RULES, "si-1") == [["FORWARD", "-i", "si-1", "-m", "comment", "--comment", "si-1", "-j", "ACCEPT"]]
    assert with_mark(RULES, "si-2") == [["FORWARD", "-i", "si-2", "-m", "comment", "--comment", "si-2", "-j", "ACCEPT"]]


def test_every_rule_that_we_add_carries_the_mark():
    lines = tuple("-A " + " ".join(rule) for _, rule in wanted("si-9", "172.31.240.0/24"))
    assert len(with_mark(lines, "si-9")) == len(lines) == 3


def test_what_was_written_down_first_stays(tmp_path: Path):
    path = tmp_path / "traces.json"
    path.write_text(json.dumps({"bridge": "si-1", "cgroup": "c", "sysctls": {"net/ipv4/ip_forward": "0"}}))
    assert Traces.record(path, bridge="si-1", cgroup="c").sysctls == {"net/ipv4/ip_forward": "0"}


def test_two_caches_have_two_bridges_with_names_that_linux_takes(tmp_path: Path):
    names = {engine.bridge(Settings(cache=tmp_path / each)) for each in ("a", "b")}
    assert len(names) == 2
    assert all(len(name) <= 15 for name in names)


def test_a_process_with_a_recycled_id_is_not_our_engine(tmp_path: Path):
    settings = Settings(cache=tmp_path)
    (settings.run / "engine").mkdir(parents=True)
    holder = settings.run / "engine" / "holder"
    holder.write_text(f"1 {engine.begin_of(1)}")
    assert engine.alive(settings) == 1
    holder.write_text("1 12345678901")
    assert engine.alive(settings) is None


def test_a_torn_note_is_no_engine(tmp_path: Path):
    settings = Settings(cache=tmp_path)
    (settings.run / "engine").mkdir(parents=True)
    (settings.run / "engine" / "holder").write_text("")
    assert engine.alive(settings) is None


@pytest.mark.parametrize(("folder", "file", "weight"), [("cpu", "cpu.shares", "65536"), (".", "cpu.weight", "6400")])
def test_the_cluster_weighs_more_than_one_process(tmp_path: Path, folder: str, file: str, weight: str):
    """In a cgroup hierarchy of either version; the kernel makes the files of a group with it."""
    parent = tmp_path / folder
    (parent / "ours").mkdir(parents=True)
    (parent / "cgroup.procs").touch()
    (parent / "ours" / file).write_text("1")
    assert host.weigh("ours", tmp_path)
    assert (parent / "ours" / file).read_text() == weight


def test_a_machine_without_cgroups_of_processors_is_no_error(tmp_path: Path):
    assert not host.weigh("ours", tmp_path)
    (tmp_path / "cgroup.procs").touch()
    assert not host.weigh("ours", tmp_path)
