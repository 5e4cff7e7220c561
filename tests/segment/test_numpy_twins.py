"""What the llama.cpp engine does with numpy and the torch engine with torch: the same tokens, the same bytes, the same verdicts."""

import base64

import numpy as np
import pytest
import torch

from splitinference_protocol.wire import leb128
from splitinference_protocol.wire.request import TensorMeta
from splitinference_protocol.wire.sampling import Sampling
from splitinference_segment.llamacpp import arrays
from splitinference_segment.llamacpp import sampling as numpy_sampling
from splitinference_segment.torch_models.torch_engine import TorchArrays
from splitinference_segment.torch_ops import comparison, sampling

VOCABULARY = 500
SETTINGS = [
    Sampling(),
    Sampling(logprobs=5),
    Sampling(temperature=0.8, seed=1),
    Sampling(temperature=1.3, seed=2, top_p=0.9),
    Sampling(temperature=1.0, seed=3, top_k=20),
    Sampling(temperature=1.0, seed=4, min_p=0.05),
    Sampling(temperature=1.0, seed=5, top_k=30, top_p=0.7, min_p=0.01),
    Sampling(temperature=0.7, seed=6, bias=((5, 4.0), (6, -100.0))),
    Sampling(temperature=0.9, seed=7, banned=(0, 1, 2, 3)),
    Sampling(temperature=0.9, seed=8, allowed=base64.b64encode(bytes([0b1010] * 20)).decode()),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=range(len(SETTINGS)))
def test_the_same_token_is_chosen(settings: Sampling) -> None:
    generator = np.random.default_rng(5)
    chosen = set()
    for position in range(60):
        logits = (generator.standard_normal(VOCABULARY) * 3).astype(np.float32)
        expected = sampling.sample(torch.from_numpy(logits), settings, position)
        found = numpy_sampling.sample(logits, settings, position)
        assert found.token == expected.token
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-5)
        assert [token for token, _ in found.top_logprobs] == [token for token, _ in expected.top_logprobs]
        assert [value for _, value in found.top_logprobs] == pytest.approx([value for _, value in expected.top_logprobs], abs=1e-5)
        chosen.add(found.token)
    assert len(chosen) > 5


@pytest.mark.parametrize(("repetition", "presence", "frequency"), [(1.3, 0.0, 0.0), (1.0, 0.7, 0.2), (0.8, -0.5, 0.3)])
def test_penalties_change_the_same_logits(repetition: float, presence: float, frequency: float) -> None:
    settings = Sampling(
        repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency,
        generated=leb128.pack_counts({3: 2, 9: 1}),
    )  # fmt: skip
    logits = np.linspace(-4, 4, VOCABULARY).astype(np.float32)
    expected = sampling.adjusted(torch.from_numpy(logits), settings).numpy()
    np.testing.assert_array_equal(numpy_sampling.adjusted(logits, settings), expected)
    assert (expected != logits).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_hidden_states_are_the_same_bytes(dtype: str) -> None:
    values = (np.random.default_rng(1).standard_normal((7, 100)) * 50).astype(np.float32)
    values[0, :6] = [np.inf, -np.inf, 0.0, 1e-40, 65519.0, 3.3895314e38]
    torch_arrays, numpy_arrays = TorchArrays(), arrays.NumpyArrays(dtype)
    tensor = torch.from_numpy(values).to(getattr(torch, dtype))
    data = torch_arrays.data(tensor, "none")
    assert numpy_arrays.data(values, "none") == data
    back = numpy_arrays.received(TensorMeta(dtype, (7, 100)), memoryview(data))
    np.testing.assert_array_equal(back, tensor.float().numpy())
    assert numpy_arrays.data(back, "none") == data  # a boundary that was rounded once stays


def test_no_number_stays_none() -> None:
    data = arrays.narrowed(np.array([np.nan, -np.nan], np.float32), "bfloat16")
    assert np.isnan(arrays.widened(data, "bfloat16")).all()


@pytest.mark.parametrize("width", [64, 100, 576])
def test_eight_bit_links_are_the_same_bytes(width: int) -> None:
    values = (np.random.default_rng(2).standard_normal((5, width)) * 9).astype(np.float32)
    tensor = torch.from_numpy(values)
    data = TorchArrays().data(tensor, "int8")
    assert arrays.NumpyArrays("float32").data(values, "int8") == data
    meta = TensorMeta("float32", (5, width), "int8")
    expected = TorchArrays().received(meta, memoryview(bytearray(data))).numpy()
    np.testing.assert_array_equal(arrays.NumpyArrays("float32").received(meta, memoryview(data)), expected)


def test_errors_of_outputs_are_the_same() -> None:
    generator = np.random.default_rng(3)
    expected = generator.standard_normal((9, 64)).astype(np.float32)
    expected[:, [3, 17]] *= 300
    received = expected + 0.01 * generator.standard_normal(expected.shape).astype(np.float32)
    received[4, 2] = np.nan
    found = arrays.errors(expected, received)
    np.testing.assert_allclose(found, comparison.errors(torch.from_numpy(expected), torch.from_numpy(received)).numpy(), rtol=1e-4)
    assert found[4] == arrays.WRONG
