"""Two parties compute a chain on shares: outputs are the plain ones within fixed point, and what a party sees tells no input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitinference.cli.secret.chain import SharedChain, Step, check_range, plain, read_chain
from splitinference.cli.secret.dealing import material, shared_weights
from splitinference.cli.secret.ring import FRACTION, decode, encode, split
from splitinference_modelfiles.stored.headers import ModelRefusedError
from tests.cli.secret.chains import CONV, DENSE, MODELS, compute, model, write

UNIT = 2.0**-FRACTION
EXTREMES = [0.0, UNIT, -UNIT, 0.5, -0.5, 1.0, -1.0, 32767.0, -32767.0, 8191.99, -8191.99]


def error_bound(chain: SharedChain, largest: float) -> float:
    """How far fixed point may be off, from the rounding of each step: of its inputs, of its weights, and of its truncation."""
    off, reach = UNIT / 2, largest
    for step in chain.steps:
        if step.weight is not None:
            taps = len(step.weight)
            gain = float(np.abs(step.weight).sum(axis=0).max())
            off = off * (gain + taps * UNIT / 2) + reach * taps * UNIT / 2 + 1.5 * UNIT
            reach = reach * gain + (0.0 if step.bias is None else float(np.abs(step.bias).max()))
    return off


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rows", [1, 3])
def test_outputs_are_the_plain_ones_within_fixed_point(name: str, rows: int, tmp_path: Path) -> None:
    chain = read_chain(model(tmp_path / "model", name))
    check_range(chain, 8.0)
    values = np.random.default_rng(rows).uniform(-8, 8, size=(rows, int(np.prod(chain.before))))
    found, _ = compute(chain, values)
    expected = plain(chain, values)
    assert np.abs(expected).max() > 1, "outputs that are all small would show nothing"
    assert np.abs(found - expected).max() <= error_bound(chain, 8.0) < 0.1


def naive_conv2d(row: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
    padded = np.pad(row, ((0, 0), (padding, padding), (padding, padding)))
    height = (padded.shape[1] - weight.shape[2]) // stride + 1
    width = (padded.shape[2] - weight.shape[3]) // stride + 1
    made = np.zeros((len(weight), height, width))
    for o, y, x in np.ndindex(made.shape):
        part = padded[:, y * stride : y * stride + weight.shape[2], x * stride : x * stride + weight.shape[3]]
        made[o, y, x] = (part * weight[o]).sum() + bias[o]
    return made


def test_a_convolution_takes_the_places_that_its_definition_says(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    weight, bias = (random.normal(size=shape).astype("f4") for shape in ((3, 2, 3, 2), (3,)))
    row = random.normal(size=(2, 5, 6))
    chain = read_chain(write(tmp_path / "model", [2, 5, 6], CONV[:1], {"0.weight": weight, "0.bias": bias}))
    expected = naive_conv2d(row, weight.astype(float), bias.astype(float), 2, 1)
    assert chain.after == expected.shape
    np.testing.assert_allclose(plain(chain, row.reshape(1, -1)).reshape(expected.shape), expected, rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(EXTREMES), st.floats(-32767, 32767)), min_size=1, max_size=12))
def test_relu_is_exact_for_every_number(numbers: list[float]) -> None:
    chain = SharedChain((Step(len(numbers)),), (len(numbers),), (len(numbers),))
    found, _ = compute(chain, np.array([numbers]))
    np.testing.assert_array_equal(found, np.maximum(decode(encode(np.array([numbers]))), 0))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(EXTREMES), st.floats(-32767, 32767)), min_size=1, max_size=12))
def test_truncation_is_off_by_one_unit_at_most(numbers: list[float]) -> None:
    count = len(numbers)
    chain = SharedChain((Step(count, np.arange(count)[:, None], np.ones((1, 1))),), (count,), (count,))
    found, _ = compute(chain, np.array([numbers]))
    assert np.abs(found - decode(encode(np.array([numbers])))).max() <= UNIT


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    return float(((counts - len(data) / 256) ** 2 / (len(data) / 256)).sum())


def test_what_a_party_receives_is_uniform_and_independent_of_the_input(tmp_path: Path) -> None:
    layers = [{"type": "Linear", "in_features": 64, "out_features": 64}, {"type": "ReLU"}]
    chain = read_chain(write(tmp_path / "model", [64], layers, {"0.weight": (64, 64), "0.bias": (64,)}))
    weights = shared_weights(chain)
    received = {}
    for name, value in (("zeros", 0.0), ("large", 7.0)):
        rows = np.full((200, 64), value)
        share = split(encode(rows))[0].tobytes()
        _, seen = compute(chain, rows, weights)
        received[name] = [share, *seen]
    assert len(received["zeros"]) == 1 + 2 * 11, "the input's share; and eleven rounds, each as it came and as it was opened"
    for zeros, large in zip(received["zeros"], received["large"], strict=True):
        # 255 degrees of freedom: 400 is passed once in 10^7 times. Two samples of one distribution differ by as little.
        assert chi_square(zeros) < 400
        assert chi_square(large) < 400
        first, second = (np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256) for data in (zeros, large))
        assert ((first - second) ** 2 / np.maximum(first + second, 1)).sum() < 400
    assert chi_square(encode(np.full((200, 64), 7.0)).tobytes()) > 10_000, "the test can see an input in the plain"


def test_shares_of_weights_and_material_are_fresh_and_uniform(tmp_path: Path) -> None:
    chain = read_chain(write(tmp_path / "model", [64], DENSE_64, {"0.weight": np.ones((64, 64)), "0.bias": np.zeros(64)}))
    weights = shared_weights(chain)
    for side in (weights.first, weights.second):
        assert chi_square(side["0.weight"].tobytes()) < 400
    one, two = material(chain, 64), material(chain, 64)
    for name in one.first:
        assert not np.array_equal(one.first[name], two.first[name]), name
        data = one.first[name] if one.first[name].dtype != np.uint8 else np.packbits(one.first[name])
        assert chi_square(data.tobytes()) < 400, name


DENSE_64 = [{"type": "Linear", "in_features": 64, "out_features": 64}, {"type": "ReLU"}]


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([{"type": "GELU"}], "layers[0] is GELU, which is not computed on shares"),
        ([{"type": "ReLU"}], "there is nothing to compute on shares"),
        ([{"type": "Conv1d", "in_channels": 6, "out_channels": 6, "kernel_size": 1, "groups": 2, "bias": False}], "groups"),
    ],
)
def test_layers_that_cannot_be_shared_are_refused(layers: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    shape, tensors = ([6, 4], {"0.weight": (6, 3, 1)}) if "groups" in layers[0] else ([6], {"0.weight": (1,)})
    folder = write(tmp_path / "model", shape, layers, tensors if "groups" in layers[0] else {})
    with pytest.raises(ModelRefusedError) as caught:
        read_chain(folder)
    assert words in str(caught.value)


def test_a_language_model_is_refused_with_the_measured_cost(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelRefusedError, match=r"'llama'.*30 s and 2 GB"):
        read_chain(tmp_path)


def test_numbers_outside_the_range_are_refused_before_anything_is_dealt(tmp_path: Path) -> None:
    chain = read_chain(
        write(tmp_path / "model", [6], DENSE, {"0.weight": np.full((5, 6), 3e4), "0.bias": np.zeros(5), "2.weight": np.full((3, 5), 3e4)})
    )
    with pytest.raises(ModelRefusedError, match="--largest-input"):
        check_range(chain, 8.0)
    for value in (np.nan, np.inf, 2.0**60):
        with pytest.raises(ValueError, match="64 bits"):
            encode([value])
