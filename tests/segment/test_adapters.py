"""LoRA adapters in segments: the logits of PEFT's arithmetic at every split point, batches of several adapters, loading while serving."""

import itertools
import json
import struct
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from adapted import ALL, ATTENTION, BUDGET, PIECES, PROMPT, Split, unsplit
from adapter_folders import merged, write_adapter
from family_models import FAMILIES, write_random
from host import free_ports
from safetensors.torch import save

from splitinference_modelfiles.adapters import BEYOND, AdapterRefusedError
from splitinference_protocol.wire.errors import ADAPTER_FULL, ADAPTER_MISSING, BAD_REQUEST, SegmentError
from splitinference_protocol.wire.request import Hop
from splitinference_segment.programs.load_adapter import LoadError, give, read_adapter
from splitinference_segment.segment import Segment
from splitinference_segment.settings import Settings
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.torch_engine import TorchEngine

CASES = {
    "llama": ALL,
    "llama-tied": ALL,
    "gpt2": ("c_attn", "c_proj"),
    "qwen3": ATTENTION,
    "phi3 with a window": ("qkv_proj", "gate_up_proj", "down_proj"),
    "gpt_neox": ("query_key_value", "dense_h_to_4h"),
    "gemma2": ALL,
    "mixtral": ("q_proj", "o_proj"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: models[name] if name in models else write_random(FAMILIES[name], root / name.replace(" ", "-")) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_every_split_gives_the_logits_of_the_merged_model(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(folders[name], tmp_path / "adapter", CASES[name])
    expected, plain = unsplit(merged(folders[name], adapter, 2.0)), unsplit(merged(folders[name], None, 0.0))
    assert (expected - plain).abs().max() > 0.1, "an adapter that changes nothing tells nothing"
    last = Layers(folders[name], 0, 1, torch.float32).count
    some = [[0, at, last] for at in range(1, last)] if name == "llama" else []
    for cuts in ([0, last], *some, list(range(last + 1))):
        split = Split(folders[name], cuts)
        digest = split.load(adapter)
        torch.testing.assert_close(split.logits([digest], PIECES)[0], expected, atol=2e-4, rtol=2e-4, msg=f"{name} {cuts}")
    torch.testing.assert_close(split.logits([""], PIECES)[0], plain, atol=2e-4, rtol=2e-4, msg=f"{name} without")


@pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_pefts(rslora: bool, dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = folders["llama"]
    config = LoraConfig(
        r=4, lora_alpha=12, target_modules=list(ALL), use_rslora=rslora, rank_pattern={"down_proj": 2}, alpha_pattern={"1.mlp.up_proj": 40},
        init_lora_weights=False, task_type="CAUSAL_LM",
    )  # fmt: skip
    torch.manual_seed(3)
    get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), config).save_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), tmp_path / "adapter").eval()
    expected = unsplit(model).float()
    split = Split(folder, [0, 2, 4, 7], dtype)
    found = split.logits([split.load(tmp_path / "adapter")], PIECES)[0]
    error = (found - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype is torch.float32 else 0.03), error
    assert (unsplit(merged(folder, None, 0.0)) - expected).norm() / expected.norm() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sequences_with_different_adapters_share_a_pass(dtype: torch.dtype, folders: dict[str, Path], tmp_path: Path) -> None:
    """Layers are joined in bfloat16, where the processor can: adapters are added to each part of the product."""
    split = Split(folders["llama"], [0, 3, 7], dtype)
    one = split.load(write_adapter(folders["llama"], tmp_path / "one", ALL, seed=1))
    two = split.load(write_adapter(folders["llama"], tmp_path / "two", ATTENTION, rank=7, seed=2))
    rows = [one, "", two, one, ""]
    together = split.logits(rows, PIECES)
    for digest, row in zip(rows, together, strict=True):
        alone = split.logits([digest], PIECES)[0]
        assert (row - alone).norm() / alone.norm() < (1e-5 if dtype is torch.float32 else 0.02)
    assert (together[0] - together[1]).norm() / together[1].norm() > 0.1
    assert (together[0] - together[2]).norm() / together[2].norm() > 0.1


def test_rslora_divides_by_the_root_of_the_rank(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(folders["llama"], tmp_path / "adapter", ATTENTION, rank=4, use_rslora=True)
    split = Split(folders["llama"], [0, 7])
    expected = unsplit(merged(folders["llama"], adapter, 4.0))
    torch.testing.assert_close(split.logits([split.load(adapter)], PIECES)[0], expected, atol=2e-4, rtol=2e-4)


def test_packed_weights_take_adapters(folders: dict[str, Path], tmp_path: Path) -> None:
    layers = Layers(folders["llama"], 0, 7, torch.bfloat16)
    if not layers.pack():
        pytest.skip("this processor has no kernels for packed weights")
    split = Split.__new__(Split)
    split.engines = [TorchEngine(layers, packed=True, adapter_bytes=BUDGET)]
    adapter = write_adapter(folders["llama"], tmp_path / "adapter", ALL)
    expected = unsplit(merged(folders["llama"], adapter, 2.0))
    found = split.logits([split.load(adapter)], PIECES)[0]
    assert (found - expected).norm() / expected.norm() < 0.05


def test_a_dropped_adapter_stays_with_the_step_that_has_it(folders: dict[str, Path], tmp_path: Path) -> None:
    split = Split(folders["llama"], [0, 7])
    digest = split.load(write_adapter(folders["llama"], tmp_path / "adapter", ATTENTION))
    adapters = split.engines[0].adapters
    had = adapters.get(digest)
    adapters.drop(digest)
    assert adapters.get(digest) is None
    assert adapters.held() == {}
    assert had is not None
    assert had.pairs


# --- what is no adapter for this model ----------------------------------------------------------------------------------------------------


def test_the_same_content_has_the_same_digest_whatever_its_dtype(folders: dict[str, Path], tmp_path: Path) -> None:
    half = write_adapter(folders["llama"], tmp_path / "half", ATTENTION, dtype=torch.bfloat16)
    from safetensors.torch import load_file, save_file

    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "adapter_config.json").write_bytes((half / "adapter_config.json").read_bytes())
    stored = {name: tensor.float() for name, tensor in load_file(half / "adapter_model.safetensors").items()}
    save_file(stored, tmp_path / "whole" / "adapter_model.safetensors")
    other = write_adapter(folders["llama"], tmp_path / "other", ATTENTION, seed=9)
    assert read_adapter(half, 5).digest == read_adapter(tmp_path / "whole", 5).digest
    assert read_adapter(half, 5).digest != read_adapter(other, 5).digest


def test_an_adapter_for_another_model_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(AdapterRefusedError, match="for another model: it changes block 4, and this model has blocks 0 to 2"):
        read_adapter(write_adapter(folders["llama"], tmp_path / "longer", ATTENTION), 3)
    split = Split(folders["gpt2"], [0, 7])
    with pytest.raises(SegmentError, match=r"block 0, self_attn\.[qv]_proj is no linear layer of this model"):
        split.load(write_adapter(folders["llama"], tmp_path / "llama", ATTENTION))
    wider = Split(folders["qwen3"], [0, 7])
    with pytest.raises(SegmentError, match=r"takes A \[rank, 64\] and B \[\d+, rank\], the adapter has"):
        wider.load(tmp_path / "llama")
    assert wider.engines[0].adapters.held() == {}, "what is refused is not held"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"0.self_attn.q_proj.A": torch.zeros(2, 64)}, "only one half"),
        ({"0.self_attn.q_proj.A": torch.full((2, 64), torch.nan), "0.self_attn.q_proj.B": torch.zeros(64, 2)}, "not finite"),
        ({"0.self_attn.q_proj.A": torch.zeros(2, 64).half(), "0.self_attn.q_proj.B": torch.zeros(64, 2)}, "should be float32"),
        ({"0.self_attn.q_proj.A": torch.zeros(3, 64), "0.self_attn.q_proj.B": torch.zeros(64, 2)}, "takes A"),
        ({"../x.A": torch.zeros(2, 64)}, "is not the name of an adapter's tensor"),
        (
            {"4.self_attn.q_proj.A": torch.zeros(2, 64), "4.self_attn.q_proj.B": torch.zeros(64, 2)},
            "is no linear layer of this model's blocks",
        ),
    ],
)
def test_a_part_that_does_not_fit_is_refused(tensors: dict[str, torch.Tensor], says: str, folders: dict[str, Path]) -> None:
    engine = TorchEngine(Layers(folders["llama"], 0, 3, torch.float32), adapter_bytes=BUDGET)
    with pytest.raises(SegmentError, match=says) as refused:
        engine.adapters.load("a" * 32, save(tensors))
    assert refused.value.code == BAD_REQUEST
    with pytest.raises(SegmentError, match="not safetensors"):
        engine.adapters.load("a" * 32, b"nothing of the kind")


def test_the_file_and_its_configuration_must_agree(folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(folders["llama"], tmp_path / "adapter", ATTENTION)
    told = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(told | {"r": 8}))
    with pytest.raises(AdapterRefusedError, match=r"has shape \[4, 64\], and adapter_config\.json says rank 8"):
        read_adapter(adapter, 5)
    (adapter / "adapter_model.safetensors").write_bytes(b"\x08" + b"\0" * 20)
    with pytest.raises(AdapterRefusedError, match="cannot be read"):
        read_adapter(adapter, 5)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterRefusedError, match="not pickled weights"):
        read_adapter(adapter, 5)


# --- segments that serve ------------------------------------------------------------------------------------------------------------------


class World:
    """Two segments with their wires, and what asks them."""

    def __init__(self, folder: Path, budget: int) -> None:
        cuts, ports = (0, 3, 7), free_ports(2)
        names = [f"seg-abcd1234-{start}-{end}" for start, end in itertools.pairwise(cuts)]
        addresses = {f"s{i}": f"127.0.0.1:{port}" for i, port in enumerate(ports)}
        self.hops = [Hop(f"s{i}", name) for i, name in enumerate(names)]
        self.settings = [
            Settings(
                f"s{i}", names[i], folder, cuts[i], cuts[i + 1], dtype="float32", max_context_tokens=64, wire_port=ports[i],
                peer_addresses=addresses, adapter_bytes=budget,
            )
            for i in range(2)
        ]  # fmt: skip

        class Nothing:
            def add(self, name: str, value: float, **labels: str) -> None: ...

        engines = [TorchEngine(Layers(folder, s.start, s.end, torch.float32), adapter_bytes=budget) for s in self.settings]
        self.segments = [Segment(s, engine, Nothing()) for s, engine in zip(self.settings, engines, strict=True)]

    def ask(self, index: int, meta: dict[str, Any], data: bytes = b"\0", role: str = "") -> dict[str, Any]:
        answers: SimpleQueue[bytes] = SimpleQueue()
        self.segments[index].handle(json.dumps({"v": 1, **meta}).encode(), memoryview(bytearray(data)), lambda m, _: answers.put(m), role)
        return dict(json.loads(answers.get(timeout=60)))

    def step(self, tokens: Sequence[int], position: int, adapter: str = "", sequence: str = "s") -> dict[str, Any]:
        meta = {"op": "step", "sequence": sequence, "position": position, "tensor": {"dtype": "int64", "shape": [len(tokens)]}}
        meta |= {"route": [hop.as_json for hop in self.hops[1:]], "sample": True, "deadline_ms": 60_000}
        meta |= {"adapter": adapter} if adapter else {}
        return self.ask(0, meta, struct.pack(f"<{len(tokens)}q", *tokens))


@pytest.fixture
def world(models: dict[str, Path]) -> Iterator[World]:
    made = World(models["llama"], 1 << 20)
    yield made
    for segment in made.segments:
        segment.stop()


def test_an_adapter_comes_over_the_wire_while_sequences_run(world: World, folders: dict[str, Path], tmp_path: Path) -> None:
    adapter = read_adapter(write_adapter(folders["llama"], tmp_path / "adapter", ALL), 5)
    before = world.step(PROMPT, 0, sequence="plain")["token"]
    assert world.step(PROMPT, 0, adapter.digest)["error"]["code"] == ADAPTER_MISSING
    held = [give(adapter, hop, settings, None) for hop, settings in zip(world.hops, world.settings, strict=True)]
    assert sum(held) == adapter.size
    expected = int(unsplit_after(merged(folders["llama"], tmp_path / "adapter", 2.0), PROMPT).argmax())
    assert world.step(PROMPT, 0, adapter.digest)["token"] == expected
    assert world.step(PROMPT, 0, sequence="again")["token"] == before
    assert world.ask(1, {"op": "adapters"}, role="operator")["adapters"] == {adapter.digest: held[1]}
    assert world.ask(1, {"op": "adapters", "keep": []}, role="operator")["adapters"] == {}
    failed = world.step([expected], len(PROMPT), adapter.digest)
    assert (failed["error"]["code"], failed["error"]["segment"]) == (ADAPTER_MISSING, "s1")
    assert give(adapter, world.hops[1], world.settings[1], None) == held[1]
    assert "token" in world.step(PROMPT, 0, adapter.digest)


def unsplit_after(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([list(tokens)])).logits[0, -1]


def test_adapters_stay_within_their_memory(models: dict[str, Path], folders: dict[str, Path], tmp_path: Path) -> None:
    one = read_adapter(write_adapter(folders["llama"], tmp_path / "one", ATTENTION), 5)
    two = read_adapter(write_adapter(folders["llama"], tmp_path / "two", ATTENTION, seed=2), 5)
    budget = len(one.part(0, 2)) * 3 // 2
    world = World(models["llama"], budget)
    try:
        give(one, world.hops[0], world.settings[0], None)
        with pytest.raises(LoadError, match=rf"{ADAPTER_FULL}: the adapter needs \d+ bytes here; \d+ of {budget} bytes .*adapterMemory"):
            give(two, world.hops[0], world.settings[0], None)
        assert list(world.ask(0, {"op": "adapters"})["adapters"]) == [one.digest]
    finally:
        for segment in world.segments:
            segment.stop()


def test_pieces_must_continue_and_have_their_digest(world: World) -> None:
    def piece(offset: int, content: bytes, total: int = 8, sha256: str = "0" * 64) -> dict[str, Any]:
        told = {"op": "adapter_load", "adapter": "b" * 32, "piece": {"offset": offset, "total": total, "sha256": sha256}}
        return world.ask(0, told, content, role="loader")

    assert "begins at byte 4 of 8, and 0 bytes are here" in piece(4, b"abcd")["error"]["message"]
    assert piece(0, b"abcd")["came"] == 4
    assert "begins at byte 5 of 8, and 4 bytes are here" in piece(5, b"abc")["error"]["message"]
    assert "is not within 8 bytes" in piece(4, b"abcde")["error"]["message"]
    assert "begins at byte 4 of 9" in piece(4, b"abcd", total=9)["error"]["message"]
    assert "do not have the digest" in piece(4, b"efgh")["error"]["message"]
    assert piece(0, b"abcd", total=1 << 30)["error"]["code"] == ADAPTER_FULL
    assert world.ask(0, {"op": "adapters"})["adapters"] == {}


@pytest.mark.parametrize("role", ["gateway", "segment", "operator", "local"])
def test_only_the_loader_may_load(role: str, world: World) -> None:
    told = {"op": "adapter_load", "adapter": "b" * 32, "piece": {"offset": 0, "total": 8, "sha256": "0" * 64}}
    assert world.ask(0, told, b"abcd", role=role)["error"]["code"] == "forbidden"


def test_a_name_that_is_no_digest_is_refused(world: World) -> None:
    assert world.step(PROMPT, 0, "../../etc")["error"]["code"] == BAD_REQUEST


@pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")
def test_every_setting_of_peft_is_known() -> None:
    """A setting that is new in PEFT may change the numbers: whoever raises its version decides what it means here."""
    from dataclasses import fields

    from peft import LoraConfig

    read = {"peft_type", "task_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights"}
    of_training = {"lora_dropout", "inference_mode", "eva_config", "corda_config", "loftq_config", "runtime_config", "ensure_weight_tying"}
    told_by_the_tensors = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "fan_in_fan_out"}
    of_the_model = {"auto_mapping", "peft_version", "base_model_name_or_path", "revision", "megatron_core", "qalora_group_size"}
    assert {each.name for each in fields(LoraConfig)} <= read | of_training | told_by_the_tensors | of_the_model | set(BEYOND)
