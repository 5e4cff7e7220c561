"""Use by others, on cores and GPUs, as the snapshot has it: doubtful values are unknown and noted."""

import pytest

from splitinference.controller.cluster_state.figures.node_metrics import Measured
from splitinference.controller.ports import Sample, Samples
from tests.controller.cluster_state.read import a_pod, cpu, read, utilization
from tests.controller.world import a_node


def test_what_own_segments_use_is_not_use_by_others():
    assert utilization(cpu(1.5, s=0.5), a_pod("s", "a", instance="chat")) == (0.5, ())
    assert utilization(cpu(1.5, s=0.5), a_pod("s", "a", instance="other"))[0] == 0.75
    assert utilization(cpu(0.4, s=0.5), a_pod("s", "a", instance="chat"))[0] == 0.0


@pytest.mark.parametrize(
    ("measured", "note"),
    [
        (cpu(None), "CPU use of a is not a number"),
        (cpu(1.0, age=61), "CPU use of a is older than 60 s"),
        (cpu(1.0, age=-61), "CPU use of a is from the future: check the clocks"),
        (cpu(-0.1), "CPU use of a is -0.1, less than 0"),
        (cpu(64.0), "CPU use of a is 64.0 cores, it has 2.0"),
        (Measured(node_cpu_cores=Samples(notes=("a: 2 series where one was expected, so none is used",))), "a: 2 series"),
    ],
)
def test_a_doubtful_value_is_unknown_and_noted(measured: Measured, note: str):
    value, notes = utilization(measured)
    assert value is None
    assert notes[0].startswith(note)


def test_a_missing_value_is_unknown():
    assert utilization(Measured()) == (None, ())


def test_while_own_use_is_unknown_that_of_others_is_too():
    assert utilization(cpu(1.9), a_pod("new", "a", instance="chat")) == (None, ())


def test_an_absurd_use_by_own_segments_does_not_make_others_idle():
    value, notes = utilization(cpu(1.9, s=1e9), a_pod("s", "a", instance="chat"))
    assert value is None
    assert notes == ("CPU use of our own segments on a is 1000000000.0 cores, it has 2.0",)


def test_a_question_beside_that_had_no_answer_is_noted_and_use_by_others_still_known():
    measured = cpu(1.0).model_copy(
        update={"node_memory_available_bytes": Samples(problem="Prometheus at http://p refused a query: parse error")}
    )
    value, notes = utilization(measured)
    assert value == 0.5
    assert notes == ("Prometheus at http://p refused a query: parse error",)


def test_more_than_all_of_a_node_is_all_of_it():
    assert utilization(cpu(2.2))[0] == 1.0


ON_GPU = {"splitinference.dev/processor": "gpu"}


def one(value: float, age: float = 5.0) -> Samples:
    return Samples(by_name={"a": Sample(value=value, age_seconds=age)})


def test_of_a_node_that_computes_on_gpus_their_use_by_others_counts():
    busy_cores = cpu(1.9)
    measured = busy_cores.model_copy(update={"node_gpu_used_by_others": one(0.25)})
    assert read([a_node("a", cores=2, **ON_GPU)], measured=measured).snapshot.nodes[0].utilization == 0.25
    assert read([a_node("a", cores=2)], measured=measured).snapshot.nodes[0].utilization == 0.95


@pytest.mark.parametrize("gpus", [Samples(), one(0.2, age=90), one(float("nan")).model_copy(update={"by_name": {}}), one(-0.1), one(7.0)])
def test_gpus_of_which_nothing_can_be_believed_are_unknown_whatever_the_cores_do(gpus: Samples):
    measured = cpu(0.1).model_copy(update={"node_gpu_used_by_others": gpus})
    assert read([a_node("a", cores=2, **ON_GPU)], measured=measured).snapshot.nodes[0].utilization is None


def test_a_processor_that_is_neither_is_noted_and_the_cores_count():
    reading = read([a_node("a", cores=2, **{"splitinference.dev/processor": "tpu"})], measured=cpu(1.0))
    assert reading.snapshot.nodes[0].utilization == 0.5
    assert "splitinference.dev/processor of node a is 'tpu', neither cpu nor gpu: cpu is taken" in reading.notes


@pytest.mark.parametrize(
    ("used", "watts", "busy"),
    [
        (1.0, 90.0, 140.0),  # half of it used, 50 W above idle
        (2.0, 90.0, 90.0),
        (0.5, 90.0, 80.0),  # a quarter used: too little to tell
        (1.0, 30.0, 80.0),  # less than idle
    ],
)
def test_what_a_busy_node_takes_is_measured_where_power_is_exported(used: float, watts: float, busy: float):
    node = a_node("a", cores=2, **{"splitinference.dev/idle-watts": "40", "splitinference.dev/busy-watts": "80"})
    found = read([node], measured=cpu(used).model_copy(update={"node_watts": one(watts)})).snapshot.nodes[0]
    assert (found.idle_watts, found.busy_watts) == (40.0, pytest.approx(busy))


def test_the_power_of_gpus_goes_with_the_use_of_gpus():
    node = a_node("a", cores=2, **ON_GPU, **{"splitinference.dev/idle-watts": "100"})
    measured = cpu(2.0).model_copy(update={"node_gpu_used": one(0.5), "node_gpu_used_by_others": one(0.0), "node_watts": one(250)})
    assert read([node], measured=measured).snapshot.nodes[0].busy_watts == pytest.approx(400)
