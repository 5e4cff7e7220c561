"""Pooling gives what its formula says, of the last segment of a split encoder, and nothing is pooled where there are no tokens."""

import math
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from test_encoder import IDS, split, unsplit, written

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.pooling import POOLING, SENTENCE_EMBEDDING, Pooling
from splitinference_segment.tensor_execution import TensorExecution, TensorResult, TensorStep
from splitinference_segment.torch_models.encoder import EncoderLayers
from splitinference_segment.torch_ops.pooling import pooled

HIDDEN = torch.tensor([[[1.0, -4.0], [2.0, 0.0], [6.0, 1.0]]])
WANTED: dict[str, list[float]] = {
    "cls": [1.0, -4.0],
    "max": [6.0, 1.0],
    "mean": [3.0, -1.0],
    "mean_sqrt_len_tokens": [9 / math.sqrt(3), -3 / math.sqrt(3)],
    "weightedmean": [(1 + 4 + 18) / 6, (-4 + 0 + 3) / 6],
    "lasttoken": [6.0, 1.0],
}


@pytest.mark.parametrize("mode", POOLING)
def test_each_mode(mode: str) -> None:
    torch.testing.assert_close(pooled(HIDDEN, Pooling((mode,))), torch.tensor([WANTED[mode]]))


def test_several_modes_stand_one_after_the_other_and_the_whole_has_length_one() -> None:
    made = pooled(HIDDEN.bfloat16(), Pooling(("cls", "mean"), normalize=True))
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, torch.nn.functional.normalize(torch.tensor([[1.0, -4.0, 3.0, -1.0]])))


def test_zeros_stay_zeros() -> None:
    assert torch.equal(pooled(torch.zeros(1, 2, 3), Pooling(("mean",), normalize=True)), torch.zeros(1, 3))


def ran(layers: Any, values: torch.Tensor, **more: Any) -> TensorResult | SegmentError:
    """The result of one step of the worker."""
    found: SimpleQueue[TensorResult | SegmentError] = SimpleQueue()
    execution = TensorExecution(layers, 1)
    try:
        execution.submit(TensorStep(values, 0.0, math.inf, found.put, **more))
        return found.get(timeout=60)
    finally:
        execution.stop()


def test_the_last_segment_gives_what_is_wanted_and_nothing_else(tmp_path: Path) -> None:
    folder = written("BertModel", tmp_path)
    states = unsplit("BertModel", folder, IDS)["last_hidden_state"]
    hidden = EncoderLayers(folder, 0, 4, torch.float32).run(torch.tensor([IDS]))
    last = EncoderLayers(folder, 4, 6, torch.float32)
    result = ran(last, hidden, wanted=(SENTENCE_EMBEDDING,), pooling=Pooling(("mean",)))
    assert isinstance(result, TensorResult)
    assert result.outputs.keys() == {SENTENCE_EMBEDDING}
    torch.testing.assert_close(result.outputs[SENTENCE_EMBEDDING], states.mean(dim=1))
    result = ran(last, hidden, wanted=("pooler_output",))
    assert isinstance(result, TensorResult)
    assert result.outputs.keys() == {"pooler_output"}
    result = ran(last, hidden)
    assert isinstance(result, TensorResult)
    assert result.outputs.keys() == split(folder, [0, 6], IDS).keys()


def test_an_output_that_the_model_does_not_give_is_refused(tmp_path: Path) -> None:
    last = EncoderLayers(written("BertModel", tmp_path), 4, 6, torch.float32)
    result = ran(last, torch.ones(1, 2, 64), wanted=("logits",))
    assert isinstance(result, SegmentError)
    assert result.code == "bad_request"
    assert "output 'logits' is not one of last_hidden_state, pooler_output" in result.message
