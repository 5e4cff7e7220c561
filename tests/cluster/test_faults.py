"""The pod of another tenant, and what is free for it."""

import pytest

from e2e.cluster.faults import burner, cores_of, cores_of_limits, cpu_quota, free_cores, limit_cpu, limit_memory
from e2e.cluster.machine.engine import Engine

NOWHERE = Engine("docker", "unix:///does/not/exist", private=True)


@pytest.mark.parametrize(("text", "cores"), [("500m", 0.5), ("2", 2.0), ("0", 0.0)])
def test_cpu_quantities(text: str, cores: float):
    assert cores_of(text) == cores


def a_pod(node: str, cpu: str, phase: str = "Running") -> dict[str, object]:
    return {"spec": {"nodeName": node, "containers": [{"resources": {"requests": {"cpu": cpu}}}, {}]}, "status": {"phase": phase}}


def test_what_is_free_counts_only_this_nodes_living_pods():
    node = {"metadata": {"name": "a"}, "status": {"allocatable": {"cpu": "800m"}}}
    pods = [a_pod("a", "300m"), a_pod("b", "400m"), a_pod("a", "200m", "Succeeded")]
    assert free_cores(node, pods) == pytest.approx(0.5)


def container(cores: float, free: float, *, limited: bool) -> dict[str, object]:
    spec = burner("a", cores, free, "image", limited=limited)["spec"]
    assert isinstance(spec, dict)
    (only,) = spec["containers"]
    return dict(only)


def test_the_tenant_asks_for_what_is_free_and_no_more():
    assert container(0.8, 0.3, limited=False)["resources"] == {"requests": {"cpu": "300m", "memory": "4Mi"}, "limits": {"memory": "32Mi"}}


def test_on_a_full_node_it_still_fits():
    assert container(0.8, -0.1, limited=False)["resources"] == {"requests": {"cpu": "10m", "memory": "4Mi"}, "limits": {"memory": "32Mi"}}


def test_so_many_loops_that_they_can_use_the_cores():
    command = container(1.5, 2, limited=True)["command"]
    assert isinstance(command, list)
    assert command[-1].count("while") == 2


def test_a_tenant_in_pulses_stops_and_goes_on():
    spec = burner("a", 1.0, 1.0, "image", limited=True, pulse_seconds=10)["spec"]
    assert isinstance(spec, dict)
    script = spec["containers"][0]["command"][-1]
    assert script.endswith("while /bin/busybox sleep 10; do kill -STOP $all; /bin/busybox sleep 10; kill -CONT $all; done")


@pytest.mark.parametrize("cores", [0, -1])
def test_a_node_cannot_have_no_cpu(cores: float):
    with pytest.raises(ValueError, match="more than 0"):
        limit_cpu(NOWHERE, "a", cores)


@pytest.mark.parametrize("cores", [0.01, 0.09, 0.25, 0.51, 1.0, 2.9, 64.0])
def test_a_quota_is_handed_out_in_short_slices_that_the_kernel_takes(cores: float):
    """A decode step of some milliseconds meets several periods: the node is a slower one, not a quick one that sleeps."""
    period, quota = cpu_quota(cores)
    assert quota / period == pytest.approx(cores, rel=0.01)
    assert quota >= 1000
    assert period <= max(10_000, 1100 / cores)


def test_the_cores_of_a_node_are_read_however_they_were_limited():
    period, quota = cpu_quota(0.41)
    assert cores_of_limits({"CpuPeriod": period, "CpuQuota": quota, "NanoCpus": 0}) == pytest.approx(0.41)
    assert cores_of_limits({"CpuPeriod": 0, "CpuQuota": 0, "NanoCpus": 500_000_000}) == 0.5
    assert cores_of_limits({"CpuPeriod": 0, "CpuQuota": 0, "NanoCpus": 0}) == 0


def test_a_node_cannot_have_no_memory():
    with pytest.raises(ValueError, match="more than 0 MiB"):
        limit_memory(NOWHERE, "a", 0)


def test_the_burner_has_a_thread_for_each_core_that_it_takes_or_so_many_as_are_asked_for() -> None:
    def loops(cores: float, threads: int) -> int:
        (container,) = burner("a", cores, 1.0, "image", limited=True, threads=threads)["spec"]["containers"]
        return str(container["command"][-1]).count("while :; do :; done &")

    assert (loops(0.8, 0), loops(1.5, 0), loops(0.8, 4)) == (1, 2, 4)
