"""Hidden states in eight bits: near enough, as small as said, and nothing that is not finite becomes finite."""

from pathlib import Path

import pytest
import torch
from servers import Chain, Chains

from splitinference_segment.encoding import decode, encode
from splitinference_segment.protocol import INT8, TensorMeta


@pytest.mark.parametrize("width", [64, 576, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_come_back_within_half_a_step_of_their_block(width: int, dtype: torch.dtype) -> None:
    hidden = (torch.randn(5, width) * 10.0).to(dtype)
    hidden[2, 17] = 3000.0  # one channel far beyond the others, as models have them
    data = encode(hidden)
    assert data.numel() == TensorMeta(str(dtype).removeprefix("torch."), (5, width), INT8).byte_size
    back = decode(data, 5, width, torch.float32)
    blocks = torch.nn.functional.pad(hidden.float(), (0, -width % 64)).view(5, -1, 64).abs().amax(-1) / 127
    step = blocks.repeat_interleave(64, dim=1)[:, :width]
    assert bool(((back - hidden.float()).abs() <= step * 0.501).all())


def test_zeros_stay_zeros() -> None:
    assert torch.equal(decode(encode(torch.zeros(2, 64)), 2, 64, torch.float32), torch.zeros(2, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    hidden = torch.ones(2, 128)
    hidden[1, 70] = bad
    back = decode(encode(hidden), 2, 128, torch.float32)
    assert not bool(back[1, 64:].isfinite().any())
    assert torch.allclose(back[0], hidden[0])


def test_a_chain_with_encoded_links_sends_half_and_says_nearly_the_same(
    models: dict[str, Path], prompt: list[int], chains: Chains, halves: Chain
) -> None:
    encoded = chains.start(models["llama"], [0, 3, 7], SI_LINK_ENCODING=INT8)
    expected, found = halves.client().step("s", 0, prompt), encoded.client().step("s", 0, prompt)
    encoded.close()
    assert abs(found["logprob"] - expected["logprob"]) < 0.5


def test_an_encoding_that_nobody_knows_is_refused(halves: Chain) -> None:
    client = halves.client(1)
    answer = client.call(
        {
            "v": 1, "op": "step", "sequence": "s", "position": 0, "route": [], "sample": True,
            "tensor": {"dtype": "float32", "shape": [1, 64], "encoding": "int4"},
        },
        bytes(256),
    )  # fmt: skip
    assert answer["error"]["code"] == "bad_request"
