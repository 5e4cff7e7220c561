"""Real Triton servers: an encoder in three segments, a generic chain in two, a decoder's logits, and numbers that are not finite."""

import time
from pathlib import Path
from typing import Any

import pytest
import test_encoder
import test_sequential
import torch
from client import Client
from random_models import CONFIGS, write_model
from safetensors.torch import load_file, save_file
from servers import READY_S, Chain, Chains
from transformers import AutoModelForCausalLM


def infer(chain: Chain, values: torch.Tensor, **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """META of the answer, and the tensors in its DATA by name."""
    client = chain.client()
    tensor = {"dtype": str(values.dtype).removeprefix("torch."), "shape": list(values.shape)}
    meta = {"v": 1, "op": "infer", "tensor": tensor, "route": client.hops(), "deadline_ms": 30000, **changes}
    return answered(client, meta, values)


def answered(client: Client, meta: dict[str, Any], values: torch.Tensor) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    answer, data = client.exchange(meta, values.contiguous().numpy().tobytes())
    made = {}
    for tensor in answer.get("tensors", ()):
        count = 4 * torch.Size(tensor["shape"]).numel()
        made[tensor["name"]] = torch.frombuffer(bytearray(data[:count]), dtype=torch.float32).reshape(tensor["shape"])
        data = data[count:]
    return answer, made


def test_an_encoder_in_three_segments(chains: Chains, tmp_path: Path) -> None:
    folder = test_encoder.written("BertModel", tmp_path)
    chain = chains.start(folder, [0, 2, 4, 6])
    values = torch.tensor([test_encoder.IDS, test_encoder.TYPES])
    answer, made = infer(chain, values)
    expected = test_encoder.unsplit("BertModel", folder, test_encoder.IDS, test_encoder.TYPES)
    assert [timing["segment"] for timing in answer["timings"]] == [server.name for server in chain.servers]
    assert made.keys() == expected.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in expected.items())
    stats = chain.client().stats()
    assert (stats["sequences"], stats["kv_bytes"], stats["steps"]) == (0, 0, 1)
    _, made = infer(chain, values, outputs=["sentence_embedding"], pooling={"modes": ["mean"]})
    assert made.keys() == {"sentence_embedding"}
    torch.testing.assert_close(made["sentence_embedding"], expected["last_hidden_state"].mean(dim=1))
    assert infer(chain, torch.ones((1, 1, 257), dtype=torch.int64))[0]["error"]["code"] == "bad_request"
    assert infer(chain, values, route=[])[0]["error"]["code"] == "wrong_segment"
    assert chain.client().step("s", 0, [1])["error"]["code"] == "wrong_segment"
    chain.close()


def test_a_generic_chain_in_two_segments(chains: Chains, tmp_path: Path) -> None:
    model, rows = test_sequential.written(tmp_path), torch.randn(7, 2, 8, 8)
    chain = chains.start(tmp_path, [0, 4, 10])
    with torch.inference_mode():
        assert torch.equal(infer(chain, rows)[1]["scores"], model(rows))
    assert infer(chain, torch.full((1, 2, 8, 8), float("nan")))[0]["error"]["code"] == "internal"
    assert infer(chain, rows[:, :1])[0]["error"]["code"] == "wrong_segment"
    assert "nothing to pool" in infer(chain, rows, pooling={"modes": ["mean"]})[0]["error"]["message"]
    chain.close()


@pytest.fixture
def poisoned(tmp_path: Path) -> Path:
    """A Llama whose last block has one weight that is not a number."""
    folder = write_model(CONFIGS["llama"], tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.4.mlp.down_proj.weight"][3, 3] = float("nan")
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def test_logits_of_the_last_position_are_the_unsplit_models(halves: Chain, models: dict[str, Path], prompt: list[int]) -> None:
    client = halves.client()
    meta = {"v": 1, "op": "step", "sequence": "s", "position": 0, "tensor": {"dtype": "int64", "shape": [len(prompt)]}}
    answer, made = answered(client, {**meta, "route": client.hops(), "sample": True, "logits": True}, torch.tensor(prompt))
    model = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1]
    assert "token" not in answer
    torch.testing.assert_close(made["logits"], expected, atol=1e-4, rtol=1e-4)
    refused, _ = infer(halves, torch.tensor(prompt))
    assert refused["error"]["code"] == "wrong_segment"


def test_activations_that_are_not_finite_are_an_error_and_never_a_token(chains: Chains, poisoned: Path, prompt: list[int]) -> None:
    chain = chains.describe(poisoned, [0, 3, 7])
    for server in chain.servers:
        server.start()
    chain.servers[0].wait_ready()  # the last one's probe fails, as it should
    client = chain.client()
    until = time.monotonic() + READY_S
    while (answer := client.step("s", 0, prompt))["error"]["code"] == "next_hop_failed" and time.monotonic() < until:
        time.sleep(0.2)
    assert (answer["error"]["code"], answer["error"]["segment"]) == ("internal", chain.servers[1].name)
    assert "not finite" in answer["error"]["message"]
    chain.close()
