"""Log-probabilities of tokens that are given: each row of a step against the token that follows it, whatever else is in the batch."""

import base64
import itertools
import time
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import MAX_TARGETS, Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.cache.kv import KvLimits, KvTable
from splitinference_segment.steps.execution import Execution, Result, Step
from splitinference_segment.torch_models.torch_engine import TorchEngine
from splitinference_segment.torch_ops.kv_torch import KvShape

VOCABULARY = 50


class LastLayers:
    """A head without blocks before it: the logits after a token are a fixed row of numbers."""

    start, end, count, first_block, hidden, vocabulary = 0, 1, 1, 0, 1, VOCABULARY
    is_first = is_last = True
    kv_shape = KvShape(1, 1, 4, torch.float32)
    blocks, linear_sizes, device = (), {}, torch.device("cpu")  # nothing that an adapter could be of

    def __init__(self) -> None:
        self.table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(3))
        self.rows: list[int] = []

    def run(self, values: torch.Tensor, spans: Any) -> torch.Tensor:
        return values

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows.append(hidden.shape[0])
        return self.table[hidden]

    def logprob(self, before: int, token: int) -> float:
        return float(torch.log_softmax(self.table[before], -1)[token])


def run(layers: LastLayers, tokens: list[int], targets: list[int], **more: Any) -> Result:
    table = KvTable(layers.kv_shape, KvLimits(4, 1 << 20, 256, 60.0))
    execution = Execution(TorchEngine(layers), table, 1, 8)  # type: ignore[arg-type]
    answers: SimpleQueue[Result | SegmentError] = SimpleQueue()
    packed = base64.b64encode(bytes(targets)).decode()
    request = Request("step", "s", 0, TensorMeta("int64", (len(tokens),)), targets=packed, **more)
    now = time.monotonic()
    execution.submit(Step(request, torch.tensor(tokens), now, now + 60, answers.put))
    result = answers.get(timeout=60)
    execution.stop()
    assert isinstance(result, Result), result
    return result


def test_each_token_is_scored_after_the_one_before_a_few_rows_at_a_time() -> None:
    layers = LastLayers()
    tokens = [number * 7 % VOCABULARY for number in range(40)]
    result = run(layers, tokens, tokens[1:], sampling=Sampling(logprobs=2))
    assert [choice.token for choice in result.scored] == tokens[1:]
    expected = [layers.logprob(before, token) for before, token in itertools.pairwise(tokens)]
    assert [choice.logprob for choice in result.scored] == pytest.approx(expected, abs=1e-5)
    assert all(len(choice.top_logprobs) == 2 for choice in result.scored)
    assert result.choice is None
    assert max(layers.rows) <= 16


def test_a_step_may_score_and_sample_with_penalties_that_do_not_touch_the_scores() -> None:
    layers = LastLayers()
    favourite = int(layers.table[5].argmax())
    sampling = Sampling(banned=(favourite,))
    result = run(layers, [3, 5], [5], sample=True, sampling=sampling)
    assert result.choice is not None
    assert result.choice.token != favourite
    assert result.scored[0].logprob == pytest.approx(layers.logprob(3, 5), abs=1e-5)


def test_targets_are_read_only_within_their_bound() -> None:
    with pytest.raises(SegmentError, match="targets"):
        protocol.parse(
            b'{"v": 1, "op": "step", "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [1]}, "targets": "%s"}'
            % (b"A" * (MAX_TARGETS + 1))
        )
