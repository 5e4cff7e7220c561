"""A segment's output compared with the same layers' elsewhere: what is recorded beside the chain, and how far off it is."""

import itertools
import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from host import free_ports
from in_process import DIGEST, Nothing

from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.errors import OVERLOADED, SegmentError
from splitinference_protocol.wire.operations import INPUT, LOCAL, OUTPUT
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings
from splitinference_segment.steps.recording import Recorder
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.torch_engine import TorchArrays, TorchEngine
from splitinference_segment.torch_ops import comparison
from splitinference_segment.torch_ops.comparison import errors, verdict
from splitinference_segment.verdicts import bound

CUTS = (0, 2, 5, 7)
HIDDEN = 64


# --- the comparison ----------------------------------------------------------------------------------------------------------------------


def states(tokens: int = 40, seed: int = 0) -> torch.Tensor:
    """Hidden states as models have them: some channels are a hundred times larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(tokens, HIDDEN, generator=generator)
    made[:, [3, 17]] *= 300
    return made


def test_the_same_output_has_no_error() -> None:
    found = verdict(states(), states(), position=5)
    assert (found.tokens, found.mean, found.worst) == (40, 0.0, 0.0)
    assert found.within(1e-9)


def test_an_error_in_ordinary_channels_is_not_hidden_by_the_large_ones() -> None:
    honest, changed = states(), states()
    changed[7, 30:50] += 0.5
    assert float((changed - honest).norm() / honest.norm()) < 1e-2, "over all channels it would hardly show"
    found = verdict(honest, changed, position=100)
    assert found.worst > 0.2
    assert found.worst_at == 107


def test_the_large_channels_may_not_be_changed_either() -> None:
    honest, changed = states(), states()
    changed[:, 3] *= 1.2
    assert verdict(honest, changed, 0).mean > 0.05


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_wrong(value: float) -> None:
    changed = states()
    changed[2, 1] = value
    found = verdict(states(), changed, 0)
    assert found.worst == comparison.WRONG
    assert not found.within(1.0)
    json.loads(json.dumps({"mean": found.mean, "worst": found.worst}), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_all_zeros_are_wrong_and_so_is_the_negative() -> None:
    for changed in (torch.zeros(40, HIDDEN), -states()):
        assert verdict(states(), changed, 0).mean >= 1.0


def test_the_bound_of_a_mean_narrows_with_the_number_of_tokens() -> None:
    assert bound(0.02, 1) == pytest.approx(0.06)
    assert bound(0.02, 400) == pytest.approx(0.022)
    mean_of_one = errors(states(1), states(1) * 1.05)
    assert float(mean_of_one.mean()) < bound(0.02, 1), "one token may be so far off"
    many = verdict(states(), states() * 1.05, 0)
    assert not many.within(0.02), "forty may not"


def test_dtypes_of_sixteen_bits_are_compared_as_they_are() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert 0 < verdict(states(), states().to(dtype), 0).mean < 0.01


# --- recording ---------------------------------------------------------------------------------------------------------------------------


def rows(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count).float()[:, None].expand(count, 4).contiguous()


def test_what_was_recorded_is_given_once_in_any_parts() -> None:
    recorder = Recorder(TorchArrays())
    recorder.begin("s", INPUT, 0.0)
    for position, count in ((0, 5), (5, 1), (6, 1)):
        recorder.add("s", INPUT, position, rows(position, count), 1.0)
    assert recorder.take("s", INPUT, 0, 3, last=False, now=1.0)[:, 0].tolist() == [0, 1, 2]
    assert recorder.take("s", INPUT, 3, 4, last=False, now=1.0)[:, 0].tolist() == [3, 4, 5, 6]
    with pytest.raises(SegmentError, match="tokens 7 to 7 are recorded, 0 to 2 are needed"):
        recorder.take("s", INPUT, 0, 2, last=False, now=1.0)
    recorder.add("s", INPUT, 7, rows(7, 1), 1.0)
    assert recorder.take("s", INPUT, 7, 1, last=True, now=1.0)[:, 0].tolist() == [7]
    with pytest.raises(SegmentError, match="not recorded"):
        recorder.take("s", INPUT, 8, 1, last=False, now=1.0)


def test_a_step_that_is_run_again_replaces_what_was_there() -> None:
    recorder = Recorder(TorchArrays())
    recorder.begin("s", OUTPUT, 0.0)
    recorder.add("s", OUTPUT, 0, rows(0, 4), 0.0)
    recorder.add("s", OUTPUT, 0, rows(10, 2), 0.0)
    recorder.add("s", OUTPUT, 2, rows(12, 1), 0.0)
    assert recorder.take("s", OUTPUT, 0, 3, last=True, now=0.0)[:, 0].tolist() == [10, 11, 12]


def test_sides_and_sequences_are_apart_and_what_nobody_asked_for_is_not_kept() -> None:
    recorder = Recorder(TorchArrays())
    recorder.begin("s", INPUT, 0.0)
    recorder.add("s", OUTPUT, 0, rows(0, 1), 0.0)
    recorder.add("t", INPUT, 0, rows(0, 1), 0.0)
    for sequence, side in (("s", OUTPUT), ("t", INPUT)):
        with pytest.raises(SegmentError, match="not recorded"):
            recorder.take(sequence, side, 0, 1, last=False, now=0.0)


def test_a_gap_is_said_and_never_filled() -> None:
    recorder = Recorder(TorchArrays())
    recorder.begin("s", INPUT, 0.0)
    recorder.add("s", INPUT, 0, rows(0, 2), 0.0)
    recorder.add("s", INPUT, 5, rows(5, 1), 0.0)
    with pytest.raises(SegmentError, match="before position 5 was not seen here"):
        recorder.take("s", INPUT, 5, 1, last=False, now=0.0)


def test_records_are_bounded_in_number_bytes_and_time() -> None:
    recorder = Recorder(TorchArrays(), most_sequences=2, most_bytes=100, idle_seconds=10)
    recorder.begin("a", INPUT, 0.0)
    recorder.begin("b", INPUT, 0.0)
    with pytest.raises(SegmentError) as refused:
        recorder.begin("c", INPUT, 1.0)
    assert refused.value.code == OVERLOADED
    recorder.add("a", INPUT, 0, rows(0, 5), 1.0)
    recorder.add("b", INPUT, 0, rows(0, 5), 1.0)
    with pytest.raises(SegmentError, match="80 bytes are recorded, the limit is 100"):
        recorder.take("b", INPUT, 0, 5, last=False, now=1.0)
    recorder.begin("c", INPUT, 12.0)
    with pytest.raises(SegmentError, match="not recorded"):
        recorder.take("a", INPUT, 0, 5, last=False, now=12.0)


# --- segments ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Three segments of a model, a verifier of the middle one, and what asks them as the gateway does."""

    segments: list[Segment]
    verifier: Segment
    hops: list[dict[str, str]]

    def ask(self, segment: Segment, meta: dict[str, Any], data: bytes = b"\0", role: str = "gateway") -> tuple[dict[str, Any], bytes]:
        answers: SimpleQueue[tuple[bytes, bytes]] = SimpleQueue()
        segment.handle(json.dumps({"v": 1, **meta}).encode(), memoryview(bytearray(data)), lambda m, d: answers.put((m, d)), role)
        said, content = answers.get(timeout=60)
        return json.loads(said), content

    def record(self, sequence: str = "s") -> None:
        for segment, side in ((self.segments[0], OUTPUT), (self.segments[2], INPUT)):
            assert self.ask(segment, {"op": "record", "sequence": sequence, "side": side})[0]["ok"]

    def step(self, tokens: list[int], position: int, sequence: str = "s") -> int:
        meta = {"op": "step", "sequence": sequence, "position": position, "tensor": {"dtype": "int64", "shape": [len(tokens)]}}
        meta |= {"route": self.hops, "sample": True, "sampling": {"temperature": 0.0}, "deadline_ms": 60_000}
        answer, _ = self.ask(self.segments[0], meta, struct.pack(f"<{len(tokens)}q", *tokens))
        return int(answer["token"])

    def check(self, position: int, tokens: int, sequence: str = "s") -> dict[str, Any]:
        content = b""
        for segment, side in ((self.segments[0], OUTPUT), (self.segments[2], INPUT)):
            asked = {"op": "recorded", "sequence": sequence, "side": side, "position": position, "tokens": tokens}
            answer, data = self.ask(segment, asked)
            assert answer["tensor"]["shape"] == [tokens, HIDDEN], answer
            content += data
        tensor = {"dtype": "float32", "shape": [tokens, HIDDEN]}
        return self.ask(self.verifier, {"op": "verify", "sequence": sequence, "position": position, "tensor": tensor}, content)[0]


@pytest.fixture
def world(models: dict[str, Path]) -> Iterator[World]:
    ranges = [*itertools.pairwise(CUTS), (CUTS[1], CUTS[2])]
    names = ["chat-a", "chat-b", "chat-c", "chat-v"]
    ports = free_ports(len(names))
    addresses = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
    made = []
    for name, port, (start, end) in zip(names, ports, ranges, strict=True):
        settings = Settings(
            name, f"seg-{DIGEST}-{start}-{end}", models["llama"], start, end, dtype="float32", max_context_tokens=256, wire_port=port,
            peer_prefix="chat-", peer_addresses=addresses,
        )  # fmt: skip
        made.append(Segment(settings, TorchEngine(Layers(models["llama"], start, end, torch.float32)), Nothing()))
    hops = [{"segment": name, "model": f"seg-{DIGEST}-{a}-{b}"} for name, (a, b) in list(zip(names, ranges, strict=True))[1:3]]
    yield World(made[:3], made[3], hops)
    for segment in made:
        segment.stop()


def test_an_honest_segment_agrees_whatever_the_steps(world: World, prompt: list[int]) -> None:
    world.record()
    tokens = [*prompt, world.step(prompt, 0)]
    for _ in range(5):
        tokens.append(world.step(tokens[-1:], len(tokens) - 1))
    held = len(tokens) - 1
    found = [world.check(0, 8), world.check(8, held - 8)]
    assert [each["tokens"] for each in found] == [8, held - 8]
    assert all(each["worst"] < 1e-4 for each in found), found


def test_a_wrong_weight_is_seen(world: World, prompt: list[int]) -> None:
    world.record()
    with torch.no_grad():
        parameter = next(iter(world.segments[1]._engine.layers.blocks[0].parameters()))  # type: ignore[union-attr]
        parameter.mul_(1.01)
    world.step(prompt, 0)
    assert world.check(0, len(prompt))["mean"] > 1e-3


def test_a_tampered_input_of_the_next_segment_is_the_checked_ones_output(world: World, prompt: list[int]) -> None:
    """What counts is what the segment after it received, not what it says that it has sent."""
    world.record()
    sent = world.segments[1]._send_on
    world.segments[1]._send_on = lambda request, hidden, encoding, **rest: sent(request, hidden * 1.5, encoding, **rest)  # type: ignore[method-assign]
    world.step(prompt, 0)
    assert world.check(0, len(prompt))["mean"] == pytest.approx(0.5, abs=0.01)


def test_the_checked_segment_is_not_told(world: World, prompt: list[int]) -> None:
    seen: list[bytes] = []
    handled = world.segments[1].handle
    world.segments[1].handle = lambda meta, *rest: (seen.append(meta), handled(meta, *rest))  # type: ignore[method-assign]
    world.step(prompt, 0, "plain")
    world.record("s")
    world.step(prompt, 0, "s")
    assert seen[0][:8] == seen[1][:8], "the head but for the deadline"
    first, second = (protocol.described(meta) for meta in seen)
    for varies in ("sequence", "deadline_ms"):
        first.pop(varies), second.pop(varies)
    assert first == second


@pytest.mark.parametrize(
    ("meta", "code"),
    [
        ({"op": "record", "sequence": "s", "side": "both"}, "bad_request"),
        ({"op": "record", "sequence": "", "side": "input"}, "bad_request"),
        ({"op": "recorded", "sequence": "s", "side": "input", "position": 0, "tokens": 1}, "not_recorded"),
        ({"op": "recorded", "sequence": "s", "side": "input", "position": -1, "tokens": 1}, "bad_request"),
        ({"op": "recorded", "sequence": "s", "side": "input", "position": 0, "tokens": 1, "last": 1}, "bad_request"),
        ({"op": "verify", "sequence": "s", "position": 0}, "bad_request"),
        ({"op": "verify", "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [1]}}, "wrong_segment"),
        ({"op": "verify", "sequence": "s", "position": 0, "tensor": {"dtype": "float32", "shape": [1, HIDDEN]}}, "bad_request"),
        ({"op": "compute", "sequence": "s", "position": 0, "tensor": {"dtype": "float32", "shape": [1, HIDDEN]}}, "bad_request"),
        ({"op": "compute", "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [1]}}, "wrong_segment"),
        ({"op": "compare", "sequence": "s", "position": 0, "tensor": {"dtype": "float32", "shape": [1, HIDDEN]}}, "bad_request"),
        ({"op": "compare", "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [1]}}, "bad_request"),
        ({"op": "compare", "sequence": "s", "position": 0, "tensor": {"dtype": "float32", "shape": [HIDDEN]}}, "bad_request"),
        ({"op": "verify", "sequence": "s", "position": 7, "tensor": {"dtype": "float32", "shape": [1, HIDDEN]}}, "kv_missing"),
        (
            {"op": "verify", "sequence": "s", "position": 0, "tensor": {"dtype": "float32", "shape": [1, HIDDEN], "encoding": "int8"}},
            "bad_request",
        ),
    ],
)
def test_bad_input_is_refused_by_its_code(world: World, meta: dict[str, Any], code: str) -> None:
    data = bytes(8 * HIDDEN) if code == "kv_missing" else b"\0" * 8
    answer, _ = world.ask(world.verifier, meta, data)
    assert answer["error"]["code"] == code, answer


def test_a_verifier_that_ends_with_the_head_says_so(world: World) -> None:
    tensor = {"dtype": "float32", "shape": [1, HIDDEN]}
    answer, _ = world.ask(world.segments[2], {"op": "verify", "sequence": "s", "position": 0, "tensor": tensor}, bytes(8 * HIDDEN))
    assert answer["error"]["code"] == "wrong_segment"


def test_a_replica_computes_from_the_input_alone_and_a_witness_compares(world: World, prompt: list[int]) -> None:
    world.record()
    world.step(prompt, 0)
    tokens, sides = len(prompt), {}
    for segment, side in ((world.segments[0], OUTPUT), (world.segments[2], INPUT)):
        sides[side] = world.ask(segment, {"op": "recorded", "sequence": "s", "side": side, "position": 0, "tokens": tokens})[1]
    tensor, computed = {"dtype": "float32", "shape": [tokens, HIDDEN]}, b""
    for position, count in ((0, 3), (3, tokens - 3)):  # in steps of its own
        part = sides[OUTPUT][4 * HIDDEN * position : 4 * HIDDEN * (position + count)]
        asked = {"op": "compute", "sequence": "s", "position": position, "tensor": {**tensor, "shape": [count, HIDDEN]}}
        answer, data = world.ask(world.verifier, asked, part)
        assert answer["tensor"] == {"dtype": "float32", "shape": [count, HIDDEN]}
        computed += data
    asked = {"op": "compare", "sequence": "s", "position": 7, "tensor": tensor}
    found, _ = world.ask(world.segments[2], asked, computed + sides[INPUT])
    assert found["tokens"] == tokens
    assert found["worst"] < 1e-4
    wrong = (torch.frombuffer(bytearray(sides[INPUT]), dtype=torch.float32) * 1.5).numpy().tobytes()
    found, _ = world.ask(world.segments[2], asked, computed + wrong)
    assert found["mean"] == pytest.approx(0.5, abs=0.01)
    assert 7 <= found["worst_at"] < 7 + tokens
    more, _ = world.ask(world.verifier, {**asked, "op": "compute", "position": tokens}, sides[OUTPUT] + b"\0")
    assert more["error"]["code"] == "bad_request", "an input alone"


@pytest.mark.parametrize("op", ["record", "recorded", "verify", "compute", "compare"])
@pytest.mark.parametrize("role", ["segment", "operator", LOCAL])
def test_nobody_but_the_gateway_may_ask(world: World, op: str, role: str) -> None:
    """A segment that could read another's record would see what its own node may not see."""
    answer, _ = world.ask(world.segments[0], {"op": op, "sequence": "s", "side": "input"}, role=role)
    if op in {"verify", "compute", "compare"}:
        answer, _ = world.ask(
            world.segments[0], {"op": op, "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [1]}}, role=role
        )
    assert answer["error"]["code"] == "forbidden"
