"""Contention that use does not show: where tasks wait on a node that looks idle, it is slow in the snapshot and in what is predicted."""

from typing import Any

import pytest

from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured
from splitinference.controller.cluster_state.figures.pressure import lost
from splitinference.controller.ports import Sample, Samples
from splitinference.core.cost import predict
from tests.controller.cluster_state.read import a_pod, read
from tests.controller.world import a_node
from tests.core import planning
from tests.core.planning import a_plan, a_problem


def one(value: float | None, name: str = "a", age: float = 5.0) -> Samples:
    return Samples() if value is None else Samples(by_name={name: Sample(value=value, age_seconds=age)})


def told(used: float | None = 0.28, waited: float | None = None, limited: float | None = None, **more: Samples) -> Measured:
    return Measured(node_cpu_cores=one(used), node_cpu_waiting=one(waited), node_cpu_limited=one(limited), **more)


def segment(used: float | None, waited: float | None = None, throttled: float | None = None) -> dict[str, Samples]:
    pod = "team/s"
    figures = {"segment_cpu_cores": used, "segment_cpu_waiting": waited, "segment_cpu_throttled": throttled}
    return {name: one(value, pod) for name, value in figures.items()}


def share(measured: Measured, cores: float = 2.0, *own: str) -> float | None:
    return lost(measured, "a", cores, own, Judge(max_age_seconds=60))


# --- a node without segments of ours -------------------------------------------------------------------------------------------------


def test_who_waits_longer_than_it_runs_shows_that_the_node_is_not_there():
    assert share(told(used=0.28, waited=0.84)) == pytest.approx(0.75)
    assert share(told(used=0.28, waited=0.28)) == pytest.approx(0.5)


def test_a_little_waiting_is_no_loss():
    assert share(told(used=1.0, waited=0.1)) == 0.0


@pytest.mark.parametrize(
    "measured",
    [
        told(waited=None),  # a kernel without PSI
        told(used=None, waited=0.9),
        told(waited=float("nan")).model_copy(update={"node_cpu_waiting": one(None)}),
        told().model_copy(update={"node_cpu_waiting": one(0.9, age=61)}),
        told().model_copy(update={"node_cpu_waiting": one(-0.1)}),
        told(waited=7.0),
        told(used=0.01, waited=0.03),  # nobody there to show it
    ],
)
def test_what_is_not_known_is_no_loss_and_not_none_either(measured: Measured):
    assert share(measured) is None


def test_a_container_that_its_own_limit_holds_back_is_no_sign():
    """The kernel counts it as waiting on the whole node, though all of the node is there for others."""
    assert share(told(used=0.1, waited=0.9, limited=0.9)) == 0.0
    assert share(told(used=0.1, waited=0.9, limited=0.5)) == pytest.approx(0.8)


# --- a node with a segment of ours ---------------------------------------------------------------------------------------------------


def test_a_segment_shows_itself_what_it_gets():
    assert share(told(waited=0.9, **segment(used=0.2, waited=0.9)), 2.0, "team/s") == pytest.approx(0.9)
    assert share(told(waited=0.9, **segment(used=1.9, waited=0.02)), 2.0, "team/s") == 0.0


def test_the_limit_of_a_small_node_is_no_contention():
    """A node of half a core lets one thread run half of the time: the rest it waits, and gets all that the node has."""
    assert share(told(used=0.45, waited=0.9, **segment(used=0.45, waited=0.45)), 0.5, "team/s") == 0.0
    assert share(told(used=0.2, waited=0.9, **segment(used=0.1, waited=0.8)), 0.5, "team/s") == pytest.approx(0.778, abs=0.001)


def test_what_the_node_waits_for_while_our_own_segments_compute_is_no_sign():
    assert share(told(used=2.0, waited=0.9, **segment(used=1.9)), 2.0, "team/s") is None
    assert share(told(used=0.2, waited=0.6, **segment(used=None)), 2.0, "team/s") is None


def test_an_idle_segment_says_nothing_and_the_node_does():
    assert share(told(used=0.2, waited=0.6, **segment(used=0.0, waited=0.0)), 2.0, "team/s") == pytest.approx(0.75)


def test_without_psi_the_periods_that_a_limit_took_count_half():
    assert share(told(**segment(used=0.5, throttled=0.8)), 2.0, "team/s") == pytest.approx(0.4)
    assert share(told(**segment(used=0.5, waited=0.01, throttled=0.8)), 2.0, "team/s") == 0.0, "what was measured is believed instead"


# --- what follows --------------------------------------------------------------------------------------------------------------------


def seen(measured: Measured, *pods: Any) -> Any:
    return read([a_node("a", cores=2)], list(pods), measured).snapshot.nodes[0]


def test_of_a_node_where_tasks_wait_less_is_there_than_use_leaves():
    found = seen(told(used=0.28, waited=3.0 * 0.28))
    assert (found.utilization, found.waiting) == (pytest.approx(0.75), pytest.approx(0.75))
    assert (seen(told(used=1.9, waited=0.5)).utilization) == pytest.approx(0.95), "what is used counts where it is more"


def test_without_pressure_all_is_as_before():
    assert (seen(told(used=0.28)).utilization, seen(told(used=0.28)).waiting) == (pytest.approx(0.14), None)
    assert seen(told(used=0.28, waited=0.0)).utilization == pytest.approx(0.14)


def test_use_that_is_not_known_is_not_zero_because_nobody_waits():
    own = a_pod("s", "a", instance="chat")
    assert seen(told(used=1.0, waited=0.0), own).utilization is None
    assert seen(Measured(node_cpu_cores=one(None), **segment(used=0.2, waited=0.9)), own).utilization == pytest.approx(0.9)


def test_what_is_predicted_is_as_slow_as_what_is_observed():
    """14 % used by others, and a segment that gets a thirteenth of the node: 3.5 s were predicted and 47 s observed."""
    problem = a_problem(planning.a_node("a"))
    plan = a_plan(f"a[0:{len(problem.profile.layers)}]")
    (idle,) = problem.snapshot.nodes

    def predicted(measured: Measured) -> float:
        found = seen(measured, a_pod("s", "a", instance="chat"))
        node = idle.model_copy(update={"utilization": found.utilization, "waiting": found.waiting})
        snapshot = problem.snapshot.model_copy(update={"nodes": (node,)})
        return predict(plan, problem.model_copy(update={"snapshot": snapshot})).latency_ms

    used = {"used": 0.28 + 0.14}
    calm = predicted(told(**used, **segment(used=0.14, waited=0.0)))
    pressed = predicted(told(**used, waited=0.9, **segment(used=0.14, waited=0.84)))
    assert pressed > 5 * calm
