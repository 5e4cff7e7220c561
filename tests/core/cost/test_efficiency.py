"""The form of the cost model: what each figure does to a layer's time, measured points, priors and ranges."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from splitinference import catalogue
from splitinference.cli.main import main
from splitinference.core.cost import predict
from splitinference.core.cost.fitting.calibrate import TELLING_MS
from splitinference.core.cost.fitting.catalogue import LEAST_FOREIGN_SPREAD, Catalogue
from splitinference.core.cost.measured import measured_ms
from splitinference.core.cost.ranges import ranges
from splitinference.core.cost.site import sites
from splitinference.core.cost.stage import decode_ms, layer_cost, no_slower, prefill_ms
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import LayerTime, Node, Processor, Snapshot
from splitinference.core.values.efficiency import Efficiency, PhaseEfficiency
from splitinference.core.values.problem import Problem, Workload
from splitinference.core.values.profile import Layer, LayerKind
from splitinference.core.values.result import Solved
from tests.core.planner_problems import a_node, a_plan, a_profile, efficiencies

LAYER = Layer(
    index=0,
    name="l",
    weight_bytes=2_000_000,
    flops_per_token=4e6,
    flops_per_token_and_context=2e3,
    kv_bytes_per_token=100,
    quantized_weights=1_000_000,
    boundary_bytes_per_token=8,
)
PROBLEM = Problem(profile=a_profile((100, 100)), snapshot=Snapshot(nodes=(a_node("a"), a_node("b"))))


def site(utilization: float = 0.0, **phases: object):  # type: ignore[no-untyped-def]
    return sites(a_node("a", efficiency=phases, utilization=utilization))[0]


def test_every_figure_of_a_decode_step_has_its_own_term() -> None:
    place = site(decode={"compute": 0.5, "bandwidth": 0.8, "attention": 0.25, "launch_ms": 0.3})
    computing, reading = 4 * 4e6 / (100e9 * 0.5), 2e6 / (10e9 * 0.8)
    attention = max(4 * 1000 * 2e3 / 100e9, 4 * 1000 * 100 / 10e9) / 0.25
    assert decode_ms(LAYER, place, 4, 1000) == pytest.approx(1e3 * (computing + reading + attention) + 0.3)


def test_every_figure_of_a_prefill_has_its_own_term_and_weights_are_dequantized_once_for_512_tokens() -> None:
    place = site(prefill={"compute": 0.5, "bandwidth": 0.8, "attention": 0.25, "launch_ms": 0.3}, dequantized_per_s=1e9)
    for tokens, passes in ((512, 1), (513, 2)):
        products = max(tokens * 4e6 / (100e9 * 0.5), 2e6 / (10e9 * 0.8))
        attention = max(tokens * 2e3 * (tokens - 1) / 2 / 100e9, 100 * tokens / 10e9) / 0.25
        assert prefill_ms(LAYER, place, tokens) == pytest.approx(1e3 * (products + attention + passes * 1e6 / 1e9) + 0.3)


def test_the_phases_do_not_share_their_figures() -> None:
    slow = {"compute": 0.1, "bandwidth": 0.1, "attention": 0.1, "launch_ms": 9.0}
    assert decode_ms(LAYER, site(prefill=slow), 1, 10) == decode_ms(LAYER, site(), 1, 10)
    assert prefill_ms(LAYER, site(decode=slow), 10) == prefill_ms(LAYER, site(), 10)


def test_without_figures_all_that_is_nominal_is_reached_and_nothing_is_launched() -> None:
    assert decode_ms(
        LAYER.model_copy(update={"kv_bytes_per_token": 0, "flops_per_token_and_context": 0.0}), site(), 1, 10
    ) == pytest.approx(1e3 * (4e6 / 100e9 + 2e6 / 10e9))


def test_what_others_use_slows_every_term_alike() -> None:
    figures = {"prefill": {"launch_ms": 1.0}, "decode": {"launch_ms": 1.0}, "dequantized_per_s": 1e9}
    idle, busy = site(**figures), site(utilization=0.75, **figures)
    assert decode_ms(LAYER, busy, 2, 100) == pytest.approx(4 * decode_ms(LAYER, idle, 2, 100))
    assert prefill_ms(LAYER, busy, 700) == pytest.approx(4 * prefill_ms(LAYER, idle, 700))


PLACES = st.builds(
    lambda gflops, gbps, used, reached, factors: sites(
        a_node("n", gflops=gflops, gbps=gbps, utilization=used, efficiency=reached, calibration=factors[0], prefill_calibration=factors[1])
    )[0],
    st.floats(1, 1e3),
    st.floats(1, 1e3),
    st.sampled_from([None, 0.0, 0.5]),
    efficiencies(),
    st.tuples(st.sampled_from([0.5, 1.0, 2.0]), st.sampled_from([0.5, 1.0, 2.0])),
)
LAYERS = st.builds(
    Layer,
    index=st.just(0),
    name=st.just("l"),
    weight_bytes=st.integers(0, 10**8),
    read_bytes_per_token=st.sampled_from([None, 100]),
    quantized_weights=st.sampled_from([0, 10**7]),
    flops_per_token=st.floats(0, 1e8),
    flops_per_token_and_context=st.floats(0, 1e4),
    kv_bytes_per_token=st.integers(0, 1000),
    boundary_bytes_per_token=st.just(8),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(PLACES, PLACES, LAYERS, st.integers(1, 3000), st.integers(1, 300))
def test_a_place_with_no_larger_figure_is_no_slower_at_any_layer(one, other, layer: Layer, tokens: int, batch: int) -> None:  # type: ignore[no-untyped-def]
    """What presolve leaves nodes out by."""
    if all(a <= b for a, b in zip(no_slower(one), no_slower(other), strict=True)):
        quick, slow = one.node, other.node
        assert quick.prefill_calibration * prefill_ms(layer, one, tokens) <= slow.prefill_calibration * prefill_ms(layer, other, tokens) * (
            1 + 1e-9
        )
        assert quick.calibration * decode_ms(layer, one, batch, 500) <= slow.calibration * decode_ms(layer, other, batch, 500) * (1 + 1e-9)


@pytest.mark.parametrize(
    "figure", [{"compute": 0}, {"bandwidth": -1}, {"attention": "inf"}, {"launch_ms": -0.1}, {"compute": 3}, {"speed": 1}]
)
def test_figures_that_make_no_sense_are_refused(figure: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PhaseEfficiency.model_validate(figure)


# --- measured points -----------------------------------------------------------------------------------------------------------------


def times(*points: tuple[int, int | None, float]) -> list[LayerTime]:
    """(batch, context, ms of the step)."""
    return [
        LayerTime(layer=0, batch=b, context=c, decode_ms_per_token=ms / b, prefill_ms_per_token=1.0 if c is None else c / 100)
        for b, c, ms in points
    ]


def step(points: list[LayerTime], batch: int, context: float = 100) -> float:
    return measured_ms(points, 10, batch, context)[1]


def test_one_measured_point_is_taken_for_each_sequence_as_before() -> None:
    assert [step(times((1, None, 3.0)), batch) for batch in (1, 2, 8)] == [3.0, 6.0, 24.0]


def test_between_measured_batches_a_step_is_linear_below_it_is_as_long_and_above_each_sequence_is() -> None:
    points = times((4, None, 10.0), (16, None, 22.0))
    assert [step(points, batch) for batch in (1, 4, 10, 16, 32)] == pytest.approx([10, 10, 16, 22, 44])


def test_between_measured_contexts_times_are_linear_and_outside_the_nearest_counts() -> None:
    points = times((1, 100, 10.0), (1, 300, 30.0))
    assert [step(points, 1, context) for context in (50, 100, 200, 300, 900)] == pytest.approx([10, 10, 20, 30, 30])
    assert [measured_ms(points, tokens, 1, 100)[0] / tokens for tokens in (50, 200, 900)] == pytest.approx([1.0, 2.0, 3.0])


def test_layer_times_depend_on_the_batch_and_context_of_the_workload() -> None:
    measured = [t.model_copy(update={"layer": layer}) for layer in (0, 1) for t in times((1, 64, 5.0), (8, 64, 8.0), (1, 1024, 9.0))]
    node = a_node("a", layer_times=measured, stage_overhead_ms=0.0)
    steps = {}
    for batch, prompt in ((1, 32), (8, 32), (1, 2000)):
        load = Workload(batch=batch, prompt_tokens=prompt, output_tokens=64, max_context_tokens=4096)
        problem = PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=(node,)), "workload": load})
        steps[batch, prompt] = predict(a_plan("a[0:2]"), problem).stages[0].decode_ms
    assert steps == {(1, 32): pytest.approx(10), (8, 32): pytest.approx(16), (1, 2000): pytest.approx(18)}


@pytest.mark.parametrize("points", [[(1, None), (1, None)], [(1, None), (1, 5)], [(2, 5), (2, 5)]])
def test_points_that_contradict_each_other_are_refused(points: list[tuple[int, int | None]]) -> None:
    with pytest.raises(ValidationError, match="layer_times"):
        Snapshot(nodes=(a_node("a", layer_times=times(*((b, c, 1.0) for b, c in points))),))


# --- priors --------------------------------------------------------------------------------------------------------------------------


def test_a_product_is_found_by_its_names_and_another_engines_figures_are_said_to_be_that() -> None:
    known = catalogue.built_in()
    own, foreign = known.prior("NVIDIA-L4", "vllm"), known.prior("NVIDIA-L4", "torch")
    assert own is not None
    assert foreign is not None
    assert own[1].decode.spread is not None
    assert own[1].decode.spread < LEAST_FOREIGN_SPREAD
    assert foreign[1].decode.spread == LEAST_FOREIGN_SPREAD
    assert foreign[1].decode.bandwidth == pytest.approx(own[1].decode.bandwidth)
    assert "for torch taken from vllm on NVIDIA-L4" in foreign[1].source
    assert known.prior("NVIDIA-T4", "vllm") == known.prior("Tesla-T4", "vllm")
    assert known.prior("Abacus", "torch") is None


def test_every_entry_says_its_source_and_is_of_a_known_product() -> None:
    known = catalogue.built_in()
    assert all(entry.efficiency.source and entry.rows for entry in known.entries)
    with pytest.raises(ValidationError, match="no processor has this name"):
        Catalogue(entries=known.entries[:1])


# --- ranges --------------------------------------------------------------------------------------------------------------------------


def spread(prefill: float | None, decode: float | None) -> Efficiency:
    return Efficiency(prefill=PhaseEfficiency(spread=prefill), decode=PhaseEfficiency(spread=decode))


def test_a_plans_range_goes_as_far_as_the_spreads_of_its_places_and_no_further() -> None:
    nodes = tuple(a_node(name, stage_overhead_ms=0.0, efficiency=spread(0.5, 0.2)) for name in ("a", "b"))
    problem = PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=nodes)})
    plan = a_plan("a[0:1] b[1:2]")
    prediction, found = predict(plan, problem), ranges(plan, problem)
    assert found is not None
    hops = prediction.ingress_ms + prediction.stages[0].link_ms
    computing = prediction.time_per_output_token_ms - hops
    assert found.time_per_output_token_ms == pytest.approx((hops + computing / 1.2, hops + computing * 1.2))
    assert found.latency_ms[0] < prediction.latency_ms < found.latency_ms[1]
    assert found.tokens_per_s[0] < prediction.tokens_per_s < found.tokens_per_s[1]


def test_where_the_spread_of_a_place_is_not_known_there_is_no_range_and_the_plan_says_so() -> None:
    nodes = (a_node("a", efficiency=spread(0.5, 0.2), free_mib=150), a_node("b", free_mib=150))
    problem = PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=nodes)})
    assert ranges(a_plan("a[0:1] b[1:2]"), problem) is None
    outcome = solve(problem)
    assert isinstance(outcome, Solved)
    assert "no range: the spread of the figures of b is not known" in outcome.explanation


def test_a_solved_plan_shows_its_ranges_where_figures_come_from_and_for_what_it_is_proven() -> None:
    efficiency = spread(0.5, 0.2).model_copy(update={"source": "9 rows of someone"})
    problem = PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=(a_node("a", efficiency=efficiency),))})
    outcome = solve(problem)
    assert isinstance(outcome, Solved)
    assert outcome.plan.prediction is not None
    assert outcome.plan.prediction.ranges == ranges(outcome.plan, problem)
    assert "proven best for these figures" in outcome.explanation[0]
    assert any(line.startswith("likely: first token ") for line in outcome.explanation)
    assert any("9 rows of someone, within 50% for prompts and 20% for tokens" in line for line in outcome.explanation)


def test_what_was_measured_while_serving_wins_over_the_spread_of_the_figures() -> None:
    node = a_node("a", efficiency=spread(0.5, 0.2), calibration_spread=0.1)
    problem = PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=(node,))})
    found = ranges(a_plan("a[0:2]"), problem)
    wider = ranges(a_plan("a[0:2]"), problem.model_copy(update={"snapshot": Snapshot(nodes=(a_node("a", efficiency=spread(0.5, 0.2)),))}))
    assert found is not None
    assert wider is not None
    assert found.time_per_output_token_ms[1] < wider.time_per_output_token_ms[1]


def test_of_several_processors_the_widest_spread_counts_and_one_unknown_makes_it_unknown() -> None:
    def node(*known: float | None) -> Node:
        places = tuple(
            Processor(name=f"p{i}", flops_per_s=1e11, memory_bandwidth_bytes_per_s=1e10, memory_free_bytes=2**30, efficiency=spread(s, s))
            for i, s in enumerate(known)
        )
        return a_node("a", processors=places)

    found = [
        ranges(a_plan("a/p0[0:2]"), PROBLEM.model_copy(update={"snapshot": Snapshot(nodes=(node(*known),))}))
        for known in ((0.1, 0.1), (0.1, 0.9), (0.1, None))
    ]
    assert found[2] is None
    assert [each.latency_ms[1] for each in found[:2] if each] == sorted(each.latency_ms[1] for each in found[:2] if each)
    assert all(a.latency_ms[1] < b.latency_ms[1] for a, b in pairwise(each for each in found if each))


# --- the command ---------------------------------------------------------------------------------------------------------------------

HEADER = "processor,engine,model,phase,batch,tokens,ms\n"
LINE = "NVIDIA-L4,torch,llama-3-8b/f16,decode,1,{},{}\n"


def test_calibrate_fit_makes_a_catalogue_from_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, written = tmp_path / "rows.csv", tmp_path / "catalogue.json"
    rows.write_text(HEADER + "".join(LINE.format(tokens, 60 + tokens / 1000) for tokens in (100, 500, 1000, 4000)))
    assert main(["calibrate", "fit", str(rows), "--write", str(written)]) == 0
    made = Catalogue.model_validate_json(written.read_text())
    assert [(entry.processor, entry.engine, entry.rows) for entry in made.entries] == [("NVIDIA-L4", "torch", 4)]
    assert made.entries[0].efficiency.decode.spread is not None
    assert "decode: nine of ten rows within" in capsys.readouterr().err


def test_calibrate_fit_takes_profiles_and_nominal_figures_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, profile = tmp_path / "rows.csv", tmp_path / "profile.json"
    profile.write_text(a_profile().model_dump_json())
    rows.write_text(HEADER + "mine,torch,test,decode,1,100,50\nmine,torch,test,decode,1,200,51\n")
    assert main(["calibrate", "fit", str(rows), "--profile", str(profile), "--gflops", "100", "--gbps", "10"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["processors"]["mine"]["flops_per_s"] == 100e9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns without"),
        (HEADER, "there is no row"),
        ("processor,engine\n", "columns without batch"),
        (HEADER + "NVIDIA-L4,torch,llama-3-8b/f16,decode,1\n", "line 2: expected 7 columns"),
        (HEADER + LINE.format(1, -1), "line 2: ms"),
        (HEADER + LINE.format(1, "nan"), "line 2: ms"),
        (HEADER + LINE.format(0, 1), "line 2: tokens"),
        (HEADER + LINE.format(1, 1).replace("decode", "dream"), "line 2: phase"),
        (HEADER + LINE.format(1, 1), "too few"),
        (HEADER + 2 * LINE.format(1, 1).replace("llama-3-8b/f16", "unheard"), "model 'unheard' is unknown"),
        (HEADER + 2 * LINE.format(1, 1).replace("NVIDIA-L4", "Abacus"), "does not know processor 'Abacus'"),
    ],
)
def test_rows_that_make_no_sense_are_refused_by_file_and_line(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text(text)
    assert main(["calibrate", "fit", str(rows)]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert "rows.csv" in shown
    assert "Traceback" not in shown


def test_an_embedding_looks_up_rows_and_launches_nothing_that_counts():
    """SmolLM2's embedding in a segment of its own takes 0.2 ms on 0.31 cores, where each block launches for 1.7 ms."""
    launching = Efficiency(prefill=PhaseEfficiency(launch_ms=1.7), decode=PhaseEfficiency(launch_ms=1.7))
    figures = {"flops_per_s": 65e9, "memory_bandwidth_bytes_per_s": 4.9e9, "efficiency": launching}
    (site,) = sites(Node(name="n", memory_free_bytes=2**30, utilization=0.08, **figures))
    shape = {"index": 0, "name": "e", "weight_bytes": 56_624_256, "boundary_bytes_per_token": 1152}
    embedding = Layer(kind=LayerKind.EMBEDDING, read_bytes_per_token=1152, flops_per_token=576, **shape)
    experts = Layer(kind=LayerKind.BLOCK, read_bytes_per_token=1152, flops_per_token=576, **shape)
    assert layer_cost(embedding, site, Workload()).decode_ms < TELLING_MS, "nothing is learned of the node from it"
    assert layer_cost(embedding, site, Workload()).prefill_ms < TELLING_MS
    assert layer_cost(experts, site, Workload()).decode_ms > 1.7, "a block of which few experts are read launches as others do"
