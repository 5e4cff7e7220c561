"""kind's configuration: unequal workers that the scheduler knows as such."""

import json
import os
from dataclasses import replace
from ipaddress import ip_network
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.cluster.kind import Machine, config, conflist, pod_cidr, write
from e2e.cluster.settings import SIZES, TRUSTED, Settings, WorkerSize, cores_here, fitting
from splitinference.controller.trust.trust_labels import settable_by_node


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(cache=tmp_path / "cache", workers=(WorkerSize(0.5, 700, trusted=True), WorkerSize(1.5, 900)))


def test_reserving_the_rest_leaves_a_nodes_share():
    assert Machine(2, 24000).reserved(0.5, 700) == "cpu=1500m,memory=23300Mi"


def test_a_node_larger_than_the_machine_reserves_nothing():
    assert Machine(2, 4000).reserved(3, 5000) == "cpu=0m,memory=0Mi"


def join(node: dict[str, list[str]]) -> dict[str, str]:
    (patch,) = (yaml.safe_load(text) for text in node["kubeadmConfigPatches"])
    arguments: dict[str, str] = patch["nodeRegistration"]["kubeletExtraArgs"]
    return arguments


def test_every_worker_has_its_size_and_labels(settings: Settings):
    _, small, large = config(settings, Machine(2, 24000), own_network=True)["nodes"]
    assert join(small)["system-reserved"] == "cpu=1500m,memory=23300Mi"
    assert join(large)["system-reserved"] == "cpu=500m,memory=23100Mi"
    assert "splitinference.dev/compute-gflops" not in small["labels"], "measured when the segment image is there"
    assert settings.workers[0].labels()[TRUSTED] == "true"
    assert TRUSTED not in settings.workers[1].labels()


def test_no_kubelet_is_told_to_set_a_label_that_it_may_not_set(settings: Settings):
    """A kubelet with such a label in --node-labels does not start."""
    for node in config(settings, Machine(2, 24000), own_network=True)["nodes"]:
        assert all(settable_by_node(key) for key in node.get("labels", {}))


def test_a_lost_node_is_seen_within_seconds_and_a_healthy_one_renews_in_time(settings: Settings):
    patches = [yaml.safe_load(text) for text in config(settings, Machine(2, 24000), own_network=True)["kubeadmConfigPatches"]]
    grace = next(each["controllerManager"]["extraArgs"]["node-monitor-grace-period"] for each in patches if "controllerManager" in each)
    lease = next(each["nodeLeaseDurationSeconds"] for each in patches if each["kind"] == "KubeletConfiguration")
    assert int(grace.removesuffix("s")) >= 4 * lease / 4  # a lease is renewed after a quarter of its length


def test_nobody_elects_a_leader_so_that_no_lease_is_lost_on_a_busy_machine(settings: Settings):
    (patch,) = (p for p in patches_of(settings) if p["kind"] == "ClusterConfiguration")
    assert patch["controllerManager"]["extraArgs"]["leader-elect"] == patch["scheduler"]["extraArgs"]["leader-elect"] == "false"


def patches_of(settings: Settings) -> list[dict[str, Any]]:
    return [yaml.safe_load(text) for text in config(settings, Machine(2, 24000), own_network=True)["kubeadmConfigPatches"]]


@pytest.mark.parametrize("program", ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"])
def test_probes_of_the_control_plane_wait_for_minutes_before_they_restart_it(settings: Settings, program: str):
    write(settings, Machine(2, 24000), own_network=True)
    (container,) = yaml.safe_load((settings.state / "patches" / f"{program}+strategic.yaml").read_text())["spec"]["containers"]
    assert container["name"] == program
    for kind in ("startupProbe", "livenessProbe"):
        assert container[kind]["timeoutSeconds"] >= 60
        assert container[kind]["failureThreshold"] * container[kind]["periodSeconds"] >= 600
    assert container.get("readinessProbe", {"periodSeconds": 10})["periodSeconds"] >= 10


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 64])
def test_workers_together_never_have_more_cores_than_the_control_plane_leaves(cores: int):
    sizes = fitting(SIZES, cores)
    assert sum(size.cores for size in sizes) <= 0.75 * cores
    assert [s.cores for s in sizes] == sorted((s.cores for s in sizes), reverse=True), "they stay unequal, in the same order"
    assert len({s.cores for s in sizes}) == 4
    assert [s.memory_mib for s in sizes] == [s.memory_mib for s in SIZES]


def test_on_a_machine_that_is_large_enough_workers_are_as_large_as_they_are_meant():
    assert fitting(SIZES, 4) == SIZES


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, 1e9),
        ({"cpu.max": "max 100000"}, 1e9),
        ({"cpu.max": "50000 100000"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1e9),
        ({"cpu/cpu.cfs_quota_us": "75000", "cpu/cpu.cfs_period_us": "100000"}, 0.75),
        ({"cpu.max": "nonsense"}, 1e9),
    ],
)
def test_the_quota_of_a_container_counts_as_the_machine(tmp_path: Path, files: dict[str, str], most: float):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores_here(tmp_path) == min(len(os.sched_getaffinity(0)), most)


def test_models_are_mounted_on_workers_and_layers_everywhere(settings: Settings):
    control_plane, *workers = config(settings, Machine(2, 24000), own_network=False)["nodes"]
    paths = [[mount["containerPath"] for mount in node["extraMounts"]] for node in (control_plane, *workers)]
    assert paths[0] == ["/var/lib/splitinference/blobs", "/kind/splitinference-patches"]
    assert paths[1] == paths[2] == ["/var/lib/splitinference/blobs", "/var/lib/splitinference/models"]


def test_with_public_images_the_network_is_kinds_own(settings: Settings):
    assert "disableDefaultCNI" not in config(settings, Machine(2, 24000), own_network=False)["networking"]


def test_all_that_is_mounted_is_there_before_kind_starts(settings: Settings):
    path = write(settings, Machine(2, 24000), own_network=True)
    mounts = [mount for node in yaml.safe_load(path.read_text())["nodes"] for mount in node["extraMounts"]]
    assert [mount["hostPath"] for mount in mounts if not Path(mount["hostPath"]).exists()] == []
    assert json.loads((settings.state / "pods" / "2.conflist").read_text()) == conflist("10.244.2.0/24")


def test_pod_subnets_do_not_meet():
    assert len({pod_cidr(index) for index in range(20)}) == 20


def test_workers_are_named_as_kind_names_them():
    assert Settings(name="x").with_workers(3).worker_names() == ("x-worker", "x-worker2", "x-worker3")


def test_beyond_four_the_sizes_repeat():
    assert [size.memory_mib for size in Settings().with_workers(6).workers] == [size.memory_mib for size in (*SIZES, *SIZES[:2])]


def test_the_default_workers_are_unequal_and_two_are_trusted():
    assert len({size.cores for size in SIZES}) == 4
    assert len({size.memory_mib for size in SIZES}) == 3
    assert sum(size.trusted for size in SIZES) == 2


def test_what_one_untrusted_worker_holds_fits_on_the_other():
    """Else a segment that fills the larger one could not leave it without a new cut."""
    assert len({size.memory_mib for size in SIZES if not size.trusted}) == 1


def test_pods_nodes_and_services_may_be_ipv6_and_nothing_else(settings: Settings):
    six = replace(settings, family="ipv6")
    networking = config(six, Machine(2, 24000), own_network=True)["networking"]
    pods, services = (ip_network(networking[name]) for name in ("podSubnet", "serviceSubnet"))
    assert networking["ipFamily"] == "ipv6"
    assert (pods.version, services.version) == (6, 6)
    ranges = [ip_network(pod_cidr(index, "ipv6")) for index in range(20)]
    assert all(each.subnet_of(pods) for each in ranges), "kubeadm refuses pods outside its range"
    assert not any(a.overlaps(b) for a, b in combinations([*ranges, services], 2))
    write(six, Machine(2, 24000), own_network=True)
    (plugin, _) = json.loads((six.state / "pods" / "1.conflist").read_text())["plugins"]
    assert plugin["ipam"]["ranges"] == [[{"subnet": pod_cidr(1, "ipv6")}]]
    assert plugin["ipam"]["routes"] == [{"dst": "::/0"}]


def test_pods_nodes_and_services_may_have_both_families(settings: Settings):
    both = replace(settings, family="dual")
    networking = config(both, Machine(2, 24000), own_network=True)["networking"]
    assert networking["ipFamily"] == "dual"
    for name in ("podSubnet", "serviceSubnet"):
        assert [ip_network(each).version for each in networking[name].split(",")] == [4, 6]
    write(both, Machine(2, 24000), own_network=True)
    (plugin, _) = json.loads((both.state / "pods" / "1.conflist").read_text())["plugins"]
    assert plugin["ipam"]["ranges"] == [[{"subnet": pod_cidr(1)}], [{"subnet": pod_cidr(1, "ipv6")}]], "an address of each"
    assert plugin["ipam"]["routes"] == [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]


def test_another_family_is_refused():
    with pytest.raises(ValueError, match="E2E_IP_FAMILY is 'ipx', expected one of ipv4, ipv6, dual"):
        Settings(family="ipx")
