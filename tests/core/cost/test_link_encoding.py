"""How hidden states travel: the bytes that the planner counts are those that a segment sends, and plans over thin links follow them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import predict, violations
from splitinference.core.cost.encoding import LEAST_SAVED_MS, saved_ms
from splitinference.core.cost.link import MESSAGE_BYTES, TOKEN_BYTES, bytes_per_token, hop
from splitinference.core.planner import Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import Link, LinkQuality, Network, Snapshot
from splitinference.core.values.problem import Goal, Objective, Pin, Problem, Slo, Workload
from splitinference.core.values.profile import Layer, LayerKind, LinkEncoding, Profile
from splitinference_protocol.wire.request import INT8, TensorMeta
from tests.core.planner_problems import MIB, a_node, a_plan, best_value

BOTH = (LinkEncoding.PLAIN, LinkEncoding.INT8)
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def a_decoder(width: int = 576, dtype: str = "bfloat16", blocks: int = 4, mib: int = 100) -> Profile:
    """Embedding, blocks, head: the head gives a token, which is no hidden state."""
    hidden = {"boundary_bytes_per_token": width * BYTES[dtype], "boundary_values_per_token": width}
    layers = [Layer(index=0, name="embedding", kind=LayerKind.EMBEDDING, weight_bytes=MIB, flops_per_token=1.0, **hidden)]
    layers += [Layer(index=i + 1, name=f"block {i}", weight_bytes=mib * MIB, flops_per_token=mib * MIB, **hidden) for i in range(blocks)]
    head = Layer(
        index=blocks + 1, name="head", kind=LayerKind.HEAD, weight_bytes=MIB, flops_per_token=1.0, boundary_bytes_per_token=TOKEN_BYTES
    )
    return Profile(model="m", digest="0" * 64, dtype=dtype, layers=(*layers, head))


def a_problem(encoding: LinkEncoding, profile: Profile | None = None, **more: Any) -> Problem:
    nodes = (a_node("near"), a_node("far"))
    base = {"profile": profile or a_decoder(), "snapshot": Snapshot(nodes=nodes), "link_encoding": encoding}
    return Problem.model_validate({**base, **more})


@pytest.mark.parametrize(
    ("width", "dtype", "plain", "int8"),
    [(576, "bfloat16", 1152, 612), (576, "float32", 2304, 612), (4096, "float16", 8192, 4352), (65, "bfloat16", 130, 136)],
)
def test_every_boundary_inside_the_model_carries_what_the_encoding_makes_of_the_width(
    width: int, dtype: str, plain: int, int8: int
) -> None:
    for encoding, expected in ((LinkEncoding.PLAIN, plain), (LinkEncoding.INT8, int8)):
        problem = a_problem(encoding, a_decoder(width, dtype))
        assert [bytes_per_token(problem, boundary) for boundary in range(6)] == [TOKEN_BYTES, *[expected] * 5]
        assert bytes_per_token(problem, 6) == TOKEN_BYTES


def test_what_is_no_hidden_state_is_never_encoded() -> None:
    layers = tuple(Layer(index=i, name=str(i), weight_bytes=MIB, flops_per_token=1.0, boundary_bytes_per_token=512) for i in range(3))
    problem = a_problem(LinkEncoding.INT8, Profile(model="m", digest="0", dtype="float32", layers=layers))
    assert [bytes_per_token(problem, boundary) for boundary in (1, 2, 3)] == [512, 512, 512]


@given(width=st.integers(1, 9000), dtype=st.sampled_from(sorted(BYTES)))
def test_the_bytes_are_those_that_a_segment_says_its_tensor_has(width: int, dtype: str) -> None:
    block = a_decoder(width, dtype).layers[1]
    for encoding, name in ((LinkEncoding.PLAIN, "none"), (LinkEncoding.INT8, INT8)):
        assert block.sent_bytes_per_token(encoding) == TensorMeta(dtype, (1, width), name).byte_size


@given(
    width=st.integers(1, 9000),
    dtype=st.sampled_from(sorted(BYTES)),
    encoding=st.sampled_from(BOTH),
    bandwidth=st.sampled_from([1e4, 1e6, 1e9]),
    prompt=st.integers(1, 500),
)
def test_a_hop_takes_the_link_for_the_bytes_that_travel(
    width: int, dtype: str, encoding: LinkEncoding, bandwidth: float, prompt: int
) -> None:
    problem = a_problem(encoding, a_decoder(width, dtype), workload=Workload(prompt_tokens=prompt, output_tokens=8, batch=3))
    sent = width * BYTES[dtype] if encoding is LinkEncoding.PLAIN else sum(64 + 4 for _ in range(0, width, 64))
    there, back = LinkQuality(bandwidth_bytes_per_s=bandwidth, rtt_ms=4.0), LinkQuality(bandwidth_bytes_per_s=1e9, rtt_ms=2.0)
    found = hop(problem, 3, there, back)
    answer = 1e3 * MESSAGE_BYTES / 1e9
    assert found.prefill_ms == pytest.approx(3.0 + answer + 1e3 * (sent * prompt + MESSAGE_BYTES) / bandwidth)
    assert found.decode_ms == pytest.approx(3.0 + answer + 1e3 * (sent * 3 + MESSAGE_BYTES) / bandwidth)


def over_a_thin_link(encoding: LinkEncoding) -> Problem:
    """The node behind the link is faster by more than eight bits a value cost on it, and by less than sixteen do."""
    nodes = (a_node("near", gflops=60, gbps=6, labels={"text": "yes"}), a_node("far", gflops=4000, gbps=400))
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=1.3e5, rtt_ms=0.5), ingress="near")
    trust = [{"start": 0, "end": 1, "labels": {"text": "yes"}}]
    load = Workload(prompt_tokens=64, output_tokens=64, max_context_tokens=128)
    return a_problem(encoding, snapshot=Snapshot(nodes=nodes, network=network), constraints={"trust": trust}, workload=load)


def test_a_plan_goes_over_a_thin_link_where_half_the_bytes_make_it_worth_while() -> None:
    found = {}
    for encoding in BOTH:
        problem = over_a_thin_link(encoding)
        answer = solve(problem)
        assert isinstance(answer, Solved)
        assert answer.plan.value == pytest.approx(best_value(problem), rel=1e-6)
        found[encoding] = {segment.node for segment in answer.plan.segments}
    assert found == {LinkEncoding.PLAIN: {"near"}, LinkEncoding.INT8: {"near", "far"}}


def test_the_link_of_a_stage_is_predicted_with_the_bytes_that_travel() -> None:
    plan = a_plan("near[0:1] far[1:6]")
    plain, packed = (predict(plan, over_a_thin_link(encoding)).stages[0].link_ms for encoding in BOTH)
    assert plain - packed == pytest.approx(1e3 * (1152 - 612) / 1.3e5)


# ---- chosen for each link


def thin_then_wide(**more: Any) -> Problem:
    """Three nodes that have to be used in this order: the first link carries 1 Mbit/s, the second one 100 Mbit/s."""
    nodes = tuple(a_node(name) for name in ("one", "two", "three"))
    ways = {("one", "two"): 1.3e5, ("two", "three"): 1.3e7}
    links = tuple(
        Link(source=a, target=b, quality=LinkQuality(bandwidth_bytes_per_s=bandwidth, rtt_ms=0.5))
        for (source, target), bandwidth in ways.items()
        for a, b in ((source, target), (target, source))
    )
    pins = tuple(Pin(start=start, end=end, node=name) for name, start, end in (("one", 0, 2), ("two", 2, 4), ("three", 4, 6)))
    network = Network(default=LinkQuality(bandwidth_bytes_per_s=1e9, rtt_ms=0.5), links=links)
    load = Workload(prompt_tokens=64, output_tokens=64, max_context_tokens=128)
    base = {"snapshot": Snapshot(nodes=nodes, network=network), "constraints": {"pins": pins}, "workload": load}
    return a_problem(LinkEncoding.AUTO, **{**base, **more})


def test_eight_bits_are_chosen_for_the_link_that_gains_and_the_plan_says_what_they_cost() -> None:
    problem = thin_then_wide()
    answer = solve(problem)
    assert isinstance(answer, Solved)
    assert [segment.link_encoding for segment in answer.plan.segments] == [LinkEncoding.INT8, None, None]
    assert not violations(answer.plan, problem)
    assert answer.plan.prediction is not None
    links = [stage.link_ms for stage in answer.plan.prediction.stages]
    plain, eight = (predict(a_plan("one[0:2] two[2:4] three[4:6]"), thin_then_wide(link_encoding=each)).stages for each in BOTH)
    assert links == [pytest.approx(eight[0].link_ms), pytest.approx(plain[1].link_ms), 0.0]
    (said,) = [line for line in answer.plan.explanation if "eight bits" in line]
    assert said.startswith("one sends two eight bits for a value: 612 bytes a token instead of 1152, 52")
    assert said.endswith("each value is off by at most 0.4% of the largest of its 64 neighbours")


def test_with_eight_bits_on_all_links_the_plan_says_so_of_each() -> None:
    answer = solve(thin_then_wide(link_encoding=LinkEncoding.INT8))
    assert isinstance(answer, Solved)
    assert [line.split(" eight bits")[0] for line in answer.plan.explanation if "eight bits" in line] == [
        "one sends two",
        "two sends three",
    ]
    assert [segment.link_encoding for segment in answer.plan.segments] == [None, None, None]


def test_an_encoding_is_a_part_of_the_plan_and_a_plan_without_is_named_as_before() -> None:
    plan = a_plan("one[0:2] two[2:6]")
    first, last = plan.segments
    eight = first.model_copy(update={"link_encoding": LinkEncoding.INT8})
    other = plan.model_copy(update={"pipelines": (plan.pipelines[0].model_copy(update={"segments": (eight, last)}),)})
    assert other.revision != plan.revision
    assert "link_encoding" not in first.model_dump(exclude_none=True)


@given(bandwidth=st.floats(1e4, 1e10), prompt=st.integers(1, 8000), width=st.integers(64, 8192))
def test_what_is_saved_is_what_the_hops_of_a_request_take_less_but_for_the_coding(bandwidth: float, prompt: int, width: int) -> None:
    load = Workload(prompt_tokens=prompt, output_tokens=32, max_context_tokens=8192)
    problem, there = a_problem(LinkEncoding.AUTO, a_decoder(width), workload=load), LinkQuality(bandwidth_bytes_per_s=bandwidth, rtt_ms=1.0)
    plain, eight = (hop(problem, 2, there, there, each) for each in BOTH)
    less = plain.prefill_ms - eight.prefill_ms + 31 * (plain.decode_ms - eight.decode_ms)
    assert saved_ms(problem, 2, there) == pytest.approx(less - (prompt + 31) * width * 8e-6, rel=1e-6, abs=1e-6)
    assert saved_ms(a_problem(LinkEncoding.AUTO, generic(), workload=load), 1, there) == 0


def generic() -> Profile:
    layers = tuple(Layer(index=i, name=str(i), weight_bytes=MIB, flops_per_token=1.0, boundary_bytes_per_token=512) for i in range(3))
    return Profile(model="m", digest="0", dtype="float32", layers=layers)


def test_a_limit_that_only_eight_bits_keep_is_kept() -> None:
    """Without the limit the second link would stay plain: it saves far less than what people notice."""
    problem = thin_then_wide()
    assert 0 < saved_ms(problem, 4, LinkQuality(bandwidth_bytes_per_s=1.3e7, rtt_ms=0.5)) < LEAST_SAVED_MS
    free = solve(problem)
    assert isinstance(free, Solved)
    assert free.plan.prediction is not None
    least = predict(a_plan("one[0:2] two[2:4] three[4:6]"), thin_then_wide(link_encoding=LinkEncoding.INT8)).time_to_first_token_ms
    between = (least + free.plan.prediction.time_to_first_token_ms) / 2
    limited = solve(thin_then_wide(slo=Slo(time_to_first_token_ms=between)))
    assert isinstance(limited, Solved)
    assert [segment.link_encoding for segment in limited.plan.segments] == [LinkEncoding.INT8, LinkEncoding.INT8, None]


def test_for_throughput_links_stay_plain() -> None:
    answer = solve(thin_then_wide(objective=Objective(goal=Goal.THROUGHPUT)))
    assert isinstance(answer, Solved)
    assert [segment.link_encoding for segment in answer.plan.segments] == [None, None, None]


def test_no_choice_is_better_than_the_bound() -> None:
    """The search counts eight bits everywhere; the best of all encodings of the best chain is what is found."""
    problem = over_a_thin_link(LinkEncoding.AUTO)
    answer = solve(problem)
    assert isinstance(answer, Solved)
    assert answer.plan.value is not None
    assert answer.bound <= answer.plan.value * (1 + 1e-9)
    assert answer.plan.value == pytest.approx(best_value(over_a_thin_link(LinkEncoding.INT8)), rel=1e-6)
