"""Hidden states in eight bits: near enough, as small as said, and nothing that is not finite becomes finite."""

import time
from pathlib import Path

import pytest
import test_encoder
import test_sequential
import torch
from servers import Chain, Chains
from test_chain import LONG_S, metrics, series
from test_tensor_chain import infer

from splitinference_protocol.wire.request import INT8, TensorMeta
from splitinference_segment.torch_ops.encoding import decode, encode


def sent(chain: Chain) -> float:
    """Bytes of hidden states that the first segment has sent to the second, in the one step there was: they are counted a moment later."""
    first, second = chain.servers[:2]
    name = series(first, "hop_bytes_total", to=second.name)
    deadline = time.monotonic() + LONG_S
    while name not in (found := metrics(first)):
        assert time.monotonic() < deadline, f"not handed over: {found}"
        time.sleep(0.1)
    return found[name]


@pytest.mark.parametrize("width", [64, 576, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_values_come_back_within_half_a_step_of_their_block(width: int, dtype: torch.dtype) -> None:
    hidden = (torch.randn(5, width) * 10.0).to(dtype)
    hidden[2, 17] = 3000.0  # one channel far beyond the others, as models have them
    data = encode(hidden)
    assert data.numel() == TensorMeta(str(dtype).removeprefix("torch."), (5, width), INT8).byte_size
    back = decode(data, (5, width), torch.float32)
    blocks = torch.nn.functional.pad(hidden.float(), (0, -width % 64)).view(5, -1, 64).abs().amax(-1) / 127
    step = blocks.repeat_interleave(64, dim=1)[:, :width]
    assert bool(((back - hidden.float()).abs() <= step * 0.501).all())


def test_rows_of_several_texts_keep_their_shape() -> None:
    hidden = torch.randn(3, 7, 100)
    data = encode(hidden)
    assert data.numel() == TensorMeta("float32", (3, 7, 100), INT8).byte_size == 21 * 2 * 68
    assert torch.equal(
        decode(data, hidden.shape, torch.float32), decode(encode(hidden.view(21, 100)), (21, 100), torch.float32).view(3, 7, 100)
    )


def test_zeros_stay_zeros() -> None:
    assert torch.equal(decode(encode(torch.zeros(2, 64)), (2, 64), torch.float32), torch.zeros(2, 64))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_not_hidden(bad: float) -> None:
    hidden = torch.ones(2, 128)
    hidden[1, 70] = bad
    back = decode(encode(hidden), (2, 128), torch.float32)
    assert not bool(back[1, 64:].isfinite().any())
    assert torch.allclose(back[0], hidden[0])


def test_a_chain_with_encoded_links_sends_half_and_says_nearly_the_same(
    models: dict[str, Path], prompt: list[int], chains: Chains, halves: Chain
) -> None:
    encoded = chains.start(models["llama"], [0, 3, 7], SI_LINK_ENCODING=INT8)
    expected, found = halves.client().step("s", 0, prompt), encoded.client().step("s", 0, prompt)
    assert abs(found["logprob"] - expected["logprob"]) < 0.5
    assert sent(encoded) == len(prompt) * 68  # of width 64; what the planner counts
    encoded.close()


def test_an_encoders_links_are_encoded_and_a_generic_chains_are_not(chains: Chains, tmp_path: Path) -> None:
    folder = test_encoder.written("BertModel", tmp_path / "bert")
    chain = chains.start(folder, [0, 2, 4, 6], SI_LINK_ENCODING=INT8)
    ids = torch.tensor([test_encoder.IDS])
    _, made = infer(chain, ids)
    expected = test_encoder.unsplit("BertModel", folder, test_encoder.IDS)
    for name, tensor in expected.items():
        assert not torch.equal(made[name], tensor), name
        assert torch.nn.functional.cosine_similarity(made[name], tensor, dim=-1).min() > 0.99, name
    assert sent(chain) == ids.numel() * 68
    chain.close()
    model = test_sequential.written(tmp_path)
    chain, rows = chains.start(tmp_path, [0, 4, 10], SI_LINK_ENCODING=INT8), torch.randn(7, 2, 8, 8)
    with torch.inference_mode():
        assert torch.equal(infer(chain, rows)[1]["scores"], model(rows))
    chain.close()


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
