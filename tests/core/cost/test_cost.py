"""The judge: times by hand, and every constraint named when it is broken."""

import pytest

from splitinference.core.cost import objective_value, predict, violations
from splitinference.core.cost.evaluate import evaluate
from splitinference.core.cost.link import MESSAGE_BYTES
from splitinference.core.cost.site import site_of
from splitinference.core.values.cluster import LayerTime, Link, LinkQuality, Network, Processor, Snapshot, Taint
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Constraints, Goal, Objective, Pin, Problem, Slo, TrustRule, Workload
from tests.core.planner_problems import MIB, a_node, a_plan, a_profile

LOAD = Workload(prompt_tokens=10, output_tokens=5, max_context_tokens=100, max_concurrent_sequences=2)


def a_problem(**more: object) -> Problem:
    nodes = (
        a_node("a", stage_overhead_ms=2.0, labels={"trusted": "yes"}),
        a_node("b", gflops=50, gbps=5, stage_overhead_ms=2.0, utilization=0.5),
        a_node("c", free_mib=50, taints=(Taint(key="gpu"),)),
    )
    base = {"profile": a_profile((100, 100, 100)), "snapshot": Snapshot(nodes=nodes), "workload": LOAD}
    return Problem.model_validate({**base, **more})


def broken(plan: str, **more: object) -> set[str]:
    return {v.constraint for v in violations(a_plan(plan), a_problem(**more))}


def test_a_decode_step_computes_and_reads_one_after_the_other_and_attends_besides() -> None:
    stage = predict(a_plan("a[0:3]"), a_problem()).stages[0]
    context = 10 + 5 / 2
    computing, reading, attention = 300 * MIB / 100e9, 300 * MIB / 10e9, max(256 * context / 10e9, 3e4 * context / 100e9)
    assert stage.decode_ms == pytest.approx(1e3 * (computing + reading + attention) + 2.0)


def test_a_decode_step_reads_the_weights_once_and_the_context_of_each_sequence_of_the_batch() -> None:
    stage = predict(a_plan("a[0:3]"), a_problem(workload=LOAD.model_copy(update={"batch": 3}))).stages[0]
    context = 10 + 5 / 2
    computing, reading, attention = 3 * 300 * MIB / 100e9, 300 * MIB / 10e9, 3 * 3e4 * context / 100e9
    assert stage.decode_ms == pytest.approx(1e3 * (computing + reading + attention) + 2.0, rel=1e-9)


def test_the_links_from_several_sources_to_a_stage_share_its_load() -> None:
    """Half of the steps come over each of the two links to c, so neither is taken for all of them."""
    nodes = tuple(a_node(name) for name in "abc")
    problem = a_problem(snapshot=Snapshot(nodes=nodes), constraints=Constraints(max_stage_nodes=2))
    alone = evaluate(a_plan("a[0:1] c[1:3]"), problem).load.link_ms
    shared = evaluate(a_plan("a+b[0:1] c[1:3]"), problem).load.link_ms
    assert alone["a", "c"] > 0
    assert shared["a", "c"] == shared["b", "c"] == pytest.approx(alone["a", "c"] / 2)
    assert shared["gateway", "a"] == pytest.approx(alone["gateway", "a"] / 2)


def test_a_compute_bound_prefill_takes_the_flops_over_what_others_leave() -> None:
    stage = predict(a_plan("b[0:3]"), a_problem()).stages[0]
    flops = 10 * 3 * (100 * MIB + 1e4 * 9 / 2)
    assert stage.prefill_ms == pytest.approx(1e3 * flops / 25e9 + 2.0)


def test_what_others_use_of_a_node_is_missing_from_its_bandwidth_as_from_its_compute() -> None:
    busy = predict(a_plan("b[0:3]"), a_problem()).stages[0]
    context = 10 + 5 / 2
    computing, reading, attention = 300 * MIB / 25e9, 300 * MIB / 2.5e9, 3e4 * context / 25e9
    assert busy.decode_ms == pytest.approx(1e3 * (computing + reading + attention) + 2.0)


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_what_others_use_counts_the_same_for_every_processor_of_a_node(kind: str) -> None:
    place = Processor(name="p0", kind=kind, flops_per_s=1e12, memory_bandwidth_bytes_per_s=1e10, memory_free_bytes=400 * MIB)
    idle, busy = (site_of(Snapshot(nodes=(a_node("n", processors=(place,), utilization=used),)), "n", "p0") for used in (0.0, 0.75))
    assert idle is not None
    assert busy is not None
    assert busy.flops_per_s == pytest.approx(idle.flops_per_s / 4)
    assert busy.bandwidth_bytes_per_s == pytest.approx(idle.bandwidth_bytes_per_s / 4)


def test_a_device_that_nobody_else_uses_is_not_slowed_by_a_busy_cpu_nor_by_its_factors() -> None:
    cpu = Processor(name="", flops_per_s=1e11, memory_bandwidth_bytes_per_s=1e10, memory_free_bytes=400 * MIB)
    gpu = cpu.model_copy(update={"name": "g", "flops_per_s": 1e12, "utilization": 0.0, "calibration": 1.0, "prefill_calibration": 1.0})
    node = a_node("n", processors=(cpu, gpu), utilization=0.75, calibration=3.0, prefill_calibration=2.0)
    found = [site_of(Snapshot(nodes=(node,)), "n", name) for name in ("", "g")]
    assert [site and (site.flops_per_s, site.free_share, site.calibration, site.prefill_calibration) for site in found] == [
        (pytest.approx(1e11 / 4), 0.25, 3.0, 2.0),
        (pytest.approx(1e12), 1.0, 1.0, 1.0),
    ]


def test_compute_of_a_device_depends_on_the_data_type() -> None:
    gpu = Processor(name="g", flops_per_s=3e14, memory_bandwidth_bytes_per_s=1e12, memory_free_bytes=MIB, flops_by_dtype={"float32": 2e13})
    snapshot = Snapshot(nodes=(a_node("a", processors=(gpu,)), a_node("b")))
    assert [place.flops_per_s for place in snapshot.for_dtype("float32").nodes[0].processors] == [2e13]
    assert snapshot.for_dtype("bfloat16") is snapshot


def test_measured_and_computed_times_are_slowed_by_others_alike() -> None:
    """So a measured node is not favoured over a computed one when others come to both."""
    for node in (
        a_node("a", stage_overhead_ms=0.0),
        a_node("a", stage_overhead_ms=0.0, layer_times=[LayerTime(layer=0, prefill_ms_per_token=1, decode_ms_per_token=7)]),
    ):
        profile = a_profile((100,))
        idle, busy = (
            predict(a_plan("a[0:1]"), a_problem(profile=profile, snapshot=Snapshot(nodes=(node.model_copy(update={"utilization": used}),))))
            for used in (0.0, 0.8)
        )
        assert busy.stages[0].decode_ms == pytest.approx(5 * idle.stages[0].decode_ms)
        assert busy.stages[0].prefill_ms == pytest.approx(5 * idle.stages[0].prefill_ms)


def test_a_hop_takes_half_of_each_rtt_and_the_bytes_of_both_ways() -> None:
    there, back = LinkQuality(bandwidth_bytes_per_s=1e6, rtt_ms=8), LinkQuality(bandwidth_bytes_per_s=2e6, rtt_ms=4)
    links = (Link(source="a", target="b", quality=there), Link(source="b", target="a", quality=back))
    snapshot = a_problem().snapshot.model_copy(update={"network": Network(links=links)})
    stage = predict(a_plan("a[0:1] b[1:3]"), a_problem(snapshot=snapshot)).stages[0]
    assert stage.link_ms == pytest.approx(4 + 2 + 1e3 * (16384 + MESSAGE_BYTES) / 1e6 + 1e3 * MESSAGE_BYTES / 2e6)


def test_zones_link_where_no_pair_of_nodes_does() -> None:
    thin = LinkQuality(bandwidth_bytes_per_s=1e5, rtt_ms=80)
    nodes = tuple(n.model_copy(update={"zone": z}) for n, z in zip(a_problem().snapshot.nodes, ("x", "y", "y"), strict=True))
    zones = (Link(source="x", target="y", quality=thin), Link(source="y", target="x", quality=thin))
    slow = predict(a_plan("a[0:1] b[1:3]"), a_problem(snapshot=Snapshot(nodes=nodes, network=Network(zones=zones))))
    assert slow.stages[0].link_ms > 80


def test_latency_is_time_to_first_token_plus_time_per_output_token() -> None:
    problem, plan = a_problem(), a_plan("a[0:1] b[1:3]")
    prediction = predict(plan, problem)
    decode = sum(stage.decode_ms + stage.link_ms for stage in prediction.stages) + prediction.ingress_ms
    assert prediction.time_per_output_token_ms == pytest.approx(decode)
    assert objective_value(plan, problem) == pytest.approx(prediction.time_to_first_token_ms + decode)
    assert prediction.latency_ms == pytest.approx(prediction.time_to_first_token_ms + 4 * decode)


def test_measured_layer_times_win_over_the_roofline() -> None:
    measured = tuple(LayerTime(layer=i, prefill_ms_per_token=1.0, decode_ms_per_token=7.0) for i in range(3))
    nodes = (a_node("a", stage_overhead_ms=0.0, layer_times=measured, utilization=0.5, calibration=2.0, prefill_calibration=3.0),)
    stage = predict(a_plan("a[0:3]"), a_problem(snapshot=Snapshot(nodes=nodes))).stages[0]
    assert stage.decode_ms == pytest.approx(3 * 7.0 * 2.0 / 0.5)
    assert stage.prefill_ms == pytest.approx(3 * 10 * 3.0 / 0.5)


def test_a_tied_head_is_held_once_beside_the_embedding_and_twice_apart() -> None:
    problem = a_problem(profile=a_profile((100, 100, 100), tied=True))
    assert predict(a_plan("a[0:3]"), problem).stages[0].weight_bytes == 200 * MIB
    assert [s.weight_bytes for s in predict(a_plan("a[0:1] b[1:3]"), problem).stages] == [100 * MIB, 200 * MIB]


def test_memory_is_weights_kv_runtime_and_margin() -> None:
    problem = a_problem(profile=a_profile((100, 100, 100), runtime_mib=10))
    stage = predict(a_plan("a[0:3]"), problem).stages[0]
    kv = 256 * 2 * 100
    assert stage.kv_bytes == kv
    assert stage.memory_bytes == pytest.approx(1.1 * (310 * MIB + kv), abs=1)


def test_energy_is_the_power_that_work_adds_for_the_time_it_takes() -> None:
    node = a_node("a", idle_watts=10, busy_watts=110, stage_overhead_ms=0.0)
    problem = a_problem(snapshot=Snapshot(nodes=(node,)), objective=Objective(goal=Goal.ENERGY))
    prediction = predict(a_plan("a[0:3]"), problem)
    seconds = (prediction.stages[0].prefill_ms + 5 * prediction.stages[0].decode_ms) / 1e3
    assert prediction.energy_joules_per_token == pytest.approx(100 * seconds / 5)


def test_only_what_does_not_serve_already_has_to_move() -> None:
    problem = a_problem(serving=((0, 1, "a"), (1, 3, "b")))
    assert predict(a_plan("a[0:1] b[1:3]"), problem).moved_bytes == 0
    assert predict(a_plan("b[0:1] a[1:3]"), problem).moved_bytes == 300 * MIB


@pytest.mark.parametrize(
    ("plan", "more", "constraint"),
    [
        ("a[0:2]", {}, "layers"),
        ("z[0:3]", {}, "place"),
        ("c[0:3]", {}, "node"),
        ("a[0:3]", {"constraints": Constraints(node_selector={"disk": "ssd"})}, "node"),
        ("b[0:3]", {"constraints": Constraints(trust=(TrustRule(start=0, end=1, labels={"trusted": "yes"}),))}, "trust"),
        ("b[0:3]", {"constraints": Constraints(pins=(Pin(start=1, end=2, node="a"),))}, "pin"),
        ("a[0:1] b[1:3]", {"constraints": Constraints(split_points=(2,))}, "split-point"),
        ("a[0:1] b[1:3]", {"constraints": Constraints(max_nodes=1)}, "max-nodes"),
        ("a[0:1] b[1:3]", {"constraints": Constraints(max_segments=1)}, "max-segments"),
        ("a[0:3]", {"constraints": Constraints(min_segments=2)}, "min-segments"),
        ("a[0:1] b[1:2] a[2:3]", {}, "node-once"),
        ("a[0:1] b[1:3]", {"constraints": Constraints(min_bandwidth_bytes_per_s=1e12)}, "min-bandwidth"),
        ("b[0:3]", {"constraints": Constraints(utilization_ceiling=0.4)}, "utilization"),
        ("a[0:3]", {"slo": Slo(time_to_first_token_ms=1)}, "slo-time-to-first-token"),
        ("a[0:3]", {"slo": Slo(time_per_output_token_ms=1)}, "slo-time-per-output-token"),
        ("a[0:3]", {"constraints": Constraints(memory_margin=1.0), "profile": a_profile((500, 100, 1))}, "memory"),
        ("a[0:3]", {"constraints": Constraints(pipelines=2)}, "pipelines"),
        ("a[0:3]|a[0:1] b[1:3]", {"constraints": Constraints(pipelines=2)}, "disjoint"),
        ("a[0:3]|a[0:3]", {"constraints": Constraints(pipelines=2, disjoint_pipelines=False)}, "shared-segment"),
        ("a+b[0:3]", {}, "stage-nodes"),
        ("a[0:3]", {"objective": Objective(goal=Goal.ENERGY)}, "node"),
    ],
)
def test_a_broken_constraint_is_named(plan: str, more: dict[str, object], constraint: str) -> None:
    assert constraint in broken(plan, **more)


def test_a_plan_that_keeps_everything_has_no_violation() -> None:
    assert broken("a[0:1] b[1:3]") == set()


def test_segments_on_processors_of_one_node_are_one_visit() -> None:
    gpu = Processor(name="g0", flops_per_s=1e12, memory_bandwidth_bytes_per_s=1e11, memory_free_bytes=300 * MIB)
    node = a_node("a", processors=(gpu, gpu.model_copy(update={"name": "g1"})))
    problem = a_problem(snapshot=Snapshot(nodes=(node, a_node("b"))), constraints=Constraints(max_nodes=1))
    assert violations(a_plan("a/g0[0:2] a/g1[2:3]"), problem) == ()
    back = {v.constraint for v in violations(a_plan("a/g0[0:1] b[1:2] a/g1[2:3]"), problem)}
    assert {"max-nodes", "node-once"} <= back
    assert {v.constraint for v in violations(a_plan("a[0:3]"), problem)} == {"place"}


def test_a_plan_for_a_node_still_fits_when_the_node_gets_a_device() -> None:
    gpu = Processor(name="g", flops_per_s=1e12, memory_bandwidth_bytes_per_s=1e11, memory_free_bytes=300 * MIB, resource="x.y/gpu")
    node = a_node("a")
    cpu = Processor(
        name="",
        flops_per_s=node.flops_per_s,
        memory_bandwidth_bytes_per_s=node.memory_bandwidth_bytes_per_s,
        memory_free_bytes=node.memory_free_bytes,
    )
    before, after = (a_problem(snapshot=Snapshot(nodes=(n,))) for n in (node, a_node("a", processors=(cpu, gpu))))
    plan = a_plan("a[0:3]")
    assert {v.constraint for v in violations(plan, before)} == {v.constraint for v in violations(plan, after)}
    assert predict(plan, before).stages == predict(plan, after).stages


@pytest.mark.parametrize("text", ["a[0:1] a[1:3]", "a[0:1] a/g[1:2] a[2:3]", "a/g[0:1] a/g[1:3]"])
def test_a_place_holds_one_segment_of_a_pipeline(text: str) -> None:
    places = tuple(
        Processor(name=name, flops_per_s=1e12, memory_bandwidth_bytes_per_s=1e11, memory_free_bytes=900 * MIB) for name in ("", "g")
    )
    problem = a_problem(snapshot=Snapshot(nodes=(a_node("a", processors=places),)))
    assert "node-once" in {v.constraint for v in violations(a_plan(text), problem)}
    assert violations(a_plan("a[0:1] a/g[1:3]"), problem) == ()


def test_the_revision_depends_on_content_alone() -> None:
    plan = a_plan("a[0:1] b[1:3]")
    assert plan.revision == Plan.model_validate({**plan.model_dump(), "value": 3.0}).revision
    assert plan.revision != a_plan("a[0:2] b[2:3]").revision
