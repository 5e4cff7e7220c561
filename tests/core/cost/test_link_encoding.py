"""How hidden states travel: the bytes that the planner counts are those that a segment sends, and plans over thin links follow them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.core.cost import predict
from splitinference.core.cost.link import MESSAGE_BYTES, TOKEN_BYTES, bytes_per_token, hop
from splitinference.core.planner import Solved
from splitinference.core.planner.solver import solve
from splitinference.core.values.cluster import LinkQuality, Network, Snapshot
from splitinference.core.values.problem import Problem, Workload
from splitinference.core.values.profile import Layer, LayerKind, LinkEncoding, Profile
from splitinference_protocol.wire.request import INT8, TensorMeta
from tests.core.planner_problems import MIB, a_node, a_plan, best_value

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
    encoding=st.sampled_from(LinkEncoding),
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
    for encoding in LinkEncoding:
        problem = over_a_thin_link(encoding)
        answer = solve(problem)
        assert isinstance(answer, Solved)
        assert answer.plan.value == pytest.approx(best_value(problem), rel=1e-6)
        found[encoding] = {segment.node for segment in answer.plan.segments}
    assert found == {LinkEncoding.PLAIN: {"near"}, LinkEncoding.INT8: {"near", "far"}}


def test_the_link_of_a_stage_is_predicted_with_the_bytes_that_travel() -> None:
    plan = a_plan("near[0:1] far[1:6]")
    plain, packed = (predict(plan, over_a_thin_link(encoding)).stages[0].link_ms for encoding in LinkEncoding)
    assert plain - packed == pytest.approx(1e3 * (1152 - 612) / 1.3e5)
