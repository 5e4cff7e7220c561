"""Weights in codes: products are those of the numbers that the codes stand for, at every split point, in the memory that was planned."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from family_models import FAMILIES, write_random
from quantized_checkpoints import CHECKPOINTS, quantized
from quantized_models import meant, replaced, run
from random_models import CONFIGS, write_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from splitinference_modelfiles.held import Form, quantized_form
from splitinference_modelfiles.stored.digests import folder_digests
from splitinference_modelfiles.stored.folder import tensor_tables
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.content import MismatchError
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.weights import MissingWeightsError
from splitinference_segment.torch_ops import quantized as ops
from splitinference_segment.torch_ops.joining import Part
from splitinference_segment.torch_ops.quantized import PLAIN, Matrix, QuantizedEmbedding, QuantizedLinear, cpu_layout

IDS = [5, 99, 17, 3, 150, 42, 42, 8, 201, 77, 30, 12]
CPU = torch.device("cpu")
WIDE = {"hidden_size": 64, "intermediate_size": 96}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def of(weights: torch.Tensor, bits: int, dtype: torch.dtype = torch.float32) -> Matrix:
    rows, columns = weights.shape
    form = quantized_form(columns, bits)
    assert form is not None
    matrix = Matrix(rows, columns, form, dtype, CPU)
    for first in range(0, rows, 64):
        matrix.quantize(first, weights[first : first + 64])
    return matrix


def random(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns)) * 0.05


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(70, 96), (192, 576), (64, 128), (49, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_product_is_that_of_what_the_codes_stand_for(bits: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weights = random(*shape)
    matrix = of(weights, bits, dtype)
    assert float((meant(matrix) - weights).norm() / weights.norm()) < {4: 0.1, 8: 0.01}[bits]
    bound = {torch.float32: 1e-5, torch.bfloat16: 0.005, torch.float16: 0.001}[dtype]
    for rows in (1, 3, 300):
        values = random(rows, shape[1]).to(dtype)
        expected = values.float() @ meant(matrix).t()
        assert float((matrix.product(values).float() - expected).norm() / expected.norm()) < bound, rows


@pytest.mark.parametrize("bits", [4, 8])
def test_bytes_are_those_that_are_planned(bits: int) -> None:
    for rows, columns in ((70, 96), (192, 576), (1, 32)):
        matrix = of(random(rows, columns), bits, torch.bfloat16)
        assert matrix.nbytes == matrix.form.bytes(rows, columns, 2)


def test_torchs_layout_is_known_on_this_processor() -> None:
    if hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        assert cpu_layout().kernel
    assert sorted(cpu_layout().order) == list(range(cpu_layout().rows))


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_other_processors_layouts_are_learnt(capability: str) -> None:
    """torch packs in other orders where it has other instructions."""
    code = """if True:
        import torch
        from splitinference_segment.torch_ops.quantized import Form, Matrix
        weights, values = torch.randn(192, 96) * 0.05, torch.randn(2, 96)
        matrix = Matrix(192, 96, Form(8, 32), torch.float32, torch.device("cpu"))
        matrix.quantize(0, weights)
        meant = matrix.lookup(torch.arange(192))
        assert (meant - weights).norm() < 0.01 * weights.norm()
        assert (matrix.product(values) - values @ meant.t()).abs().max() < 1e-5
        print(matrix.layout.kernel)
    """
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "True", done.stderr


def test_without_torchs_product_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = random(3, 96)
    expected = of(random(70, 96), 4).product(values)
    monkeypatch.setattr(ops, "cpu_layout", lambda: PLAIN)
    torch.testing.assert_close(of(random(70, 96), 4).product(values), expected, atol=1e-5, rtol=1e-4)


def test_matrices_with_the_same_inputs_are_one_product() -> None:
    parts = [of(random(rows, 96), 4) for rows in (128, 64, 70)]
    values = random(5, 96)
    assert not Matrix.can_join(parts), "70 rows are no whole blocks"
    assert Matrix.can_join(parts[:2])
    together = Matrix.joined(parts[:2])
    assert torch.equal(together.product(values), torch.cat([part.product(values) for part in parts[:2]], 1))


def test_inputs_that_make_no_whole_groups_keep_the_data_type() -> None:
    assert quantized_form(40, 4) is None
    assert quantized_form(576, 8) == Form(8, 64)


MODELS = {
    **{name: CONFIGS[name] for name in ("llama", "llama-tied", "qwen2", "qwen3", "gemma", "gpt2")},
    **{name: FAMILIES[name] for name in ("gemma2", "gemma3", "phi3 with longrope", "olmo2", "granite", "starcoder2", "gpt_neox")},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantized")
    return {name: write_random(config, root / name.replace(" ", "-")) for name, config in MODELS.items()}


@pytest.mark.parametrize("weights", ["Int8", "Int4"])
@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_logits_of_its_quantized_weights(name: str, weights: str, folders: dict[str, Path]) -> None:
    last = MODELS[name].num_hidden_layers + 2
    model = replaced(folders[name], weights)
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    for cuts in ([0, last], [0, 1, last], [0, 2, last - 1, last]):
        parts = [Layers(folders[name], start, end, torch.float32, weights=weights) for start, end in itertools.pairwise(cuts)]
        torch.testing.assert_close(run(parts, IDS), expected, atol=3e-4, rtol=3e-4, msg=f"{name} {cuts}")


@pytest.mark.parametrize("weights", ["AsStored", "Int8", "Int4"])
@pytest.mark.parametrize("name", ["llama", "llama-tied", "gpt2", "gemma"])
def test_segments_hold_what_is_planned(name: str, weights: str, folders: dict[str, Path]) -> None:
    model = accepted(folders[name], weights)[1]
    last = MODELS[name].num_hidden_layers + 2
    whole = Layers(folders[name], 0, last, torch.bfloat16, weights=weights)
    assert whole.weight_bytes() == sum(model.held_bytes(tensor, 2) for tensor in model.used)
    if model.tied:
        embedding = next(tensor for tensor in model.used if tensor.endswith(("embed_tokens.weight", "wte.weight")))
        parts = sum(Layers(folders[name], start, end, torch.bfloat16, weights=weights).weight_bytes() for start, end in ((0, 2), (2, last)))
        assert parts == whole.weight_bytes() + model.held_bytes(embedding, 2)


def test_a_process_needs_the_memory_that_is_planned_within_5_percent(tmp_path: Path) -> None:
    """What the kernel counts of a process of its own, before and after it loads some dozens of megabytes."""
    config = LlamaConfig(hidden_size=512, intermediate_size=1536, num_hidden_layers=10, num_attention_heads=8, num_key_value_heads=2,
                         vocab_size=16384, bos_token_id=None, eos_token_id=None, pad_token_id=None)  # fmt: skip
    write_model(config, tmp_path, torch.bfloat16)
    code = """if True:
        import ctypes, gc, sys, torch
        from pathlib import Path
        from splitinference_segment.torch_models.layers import Layers
        torch.set_num_threads(1)
        def anonymous():
            gc.collect(); ctypes.CDLL(None).malloc_trim(0)
            return next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("RssAnon"))
        for weights in sys.argv[2:]:
            warm = Layers(Path(sys.argv[1]), 11, 12, torch.bfloat16, weights=weights)
            del warm
            before = anonymous()
            layers = Layers(Path(sys.argv[1]), 0, 12, torch.bfloat16, weights=weights)
            print(anonymous() - before, layers.weight_bytes())
            del layers
    """
    ways = ("Int8", "Int4")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *ways], env=environment, capture_output=True, text=True, check=True)
    for weights, line in zip(ways, done.stdout.splitlines(), strict=True):
        measured, counted = map(int, line.split())
        model = accepted(tmp_path, weights)[1]
        planned = sum(model.held_bytes(tensor, 2) for tensor in model.used)
        assert counted == planned
        assert abs(measured - planned) / planned < 0.05, (weights, measured, planned)


def test_queries_keys_and_values_are_one_product_where_they_are_whole_blocks(folders: dict[str, Path]) -> None:
    layers = Layers(folders["llama"], 1, 2, torch.float32, weights="Int4")
    kinds = {type(module) for module in layers.blocks[0].modules()}
    assert QuantizedLinear in kinds
    assert Part not in kinds, "32 rows of keys are no whole block"
    assert isinstance(Layers(folders["llama"], 0, 1, torch.float32, weights="Int8").embedding, QuantizedEmbedding)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_tensor_that_is_not_the_models_is_noticed_while_it_is_quantized(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).write_bytes((folders[name] / file).read_bytes())
    file_of, table = tensor_tables(str(folder))
    digests = folder_digests(str(folder), file_of, table, None)
    assert digests is not None
    Layers(folder, 1, 2, torch.float32, digests=digests, weights="Int4")
    tensors = load_file(folder / "model.safetensors")
    changed = next(key for key in tensors if "0." in key and key.endswith(("q_proj.weight", "c_attn.weight")))
    tensors[changed][-1, -1] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=changed):
        Layers(folder, 1, 2, torch.float32, digests=digests, weights="Int4")


def test_mixtures_of_experts_are_refused(tmp_path: Path) -> None:
    folder = write_random(FAMILIES["mixtral"], tmp_path)
    with pytest.raises(UnsupportedModelError, match="weights Int4 is not served for mixtures of experts"):
        Layers(folder, 1, 2, torch.float32, weights="Int4")


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_quantized_checkpoint_gives_the_logits_of_the_weights_that_it_means(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path, name)
    model = AutoModelForCausalLM.from_pretrained(folder / "meant", dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0]
    plan = accepted(folder)[1]
    for cuts in ([0, 7], [0, 3, 7]):
        parts = [Layers(folder, start, end, torch.float32) for start, end in itertools.pairwise(cuts)]
        torch.testing.assert_close(run(parts, IDS), expected, atol=3e-4, rtol=3e-4)
        if cuts == [0, 7]:
            assert parts[0].weight_bytes() == sum(plan.held_bytes(tensor, 4) for tensor in plan.used)
    assert bool(plan.held) == (name not in ("FP8 by rows", "FP8 in blocks", "GPTQ, groups of 16"))


def test_fp8_under_compression_config_is_served_with_its_scales(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path, "FP8 by rows", key="compression_config")
    layers, plain = (Layers(path, 1, 2, torch.float32) for path in (folder, folder / "meant"))
    for own, other in zip(layers.blocks[0].parameters(), plain.blocks[0].parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_a_checkpoint_that_is_quantized_is_not_quantized_again(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path, "GPTQ")
    with pytest.raises(UnsupportedModelError, match="weights Int4 is for checkpoints in 16 or 32 bits"):
        Layers(folder, 1, 2, torch.float32, weights="Int4")


def test_groups_of_unequal_size_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path, "GPTQ with act-order")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.g_idx"
    tensors[name][:] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MissingWeightsError, match=r"layers\.0\.self_attn\.q_proj\.weight: groups have 0 to 64 inputs, expected 32 each"):
        Layers(folder, 1, 2, torch.float32)


def test_a_changed_code_is_noticed(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = quantized(folders["llama"], tmp_path, "AWQ")
    file_of, table = tensor_tables(str(folder))
    digests = folder_digests(str(folder), file_of, table, None)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.qzeros"][0, 0] ^= 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(MismatchError, match=r"up_proj\.qzeros"):
        Layers(folder, 1, 2, torch.float32, digests=digests)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "awq"
