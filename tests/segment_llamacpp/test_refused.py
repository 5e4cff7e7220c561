"""Files and cuts that are refused, each with its reason."""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chains import Chain, cuts, engine
from random_gguf import BLOCKS, VOCABULARY, make, random_model, write_gguf
from unsplit import Unsplit, same

from splitinference_modelfiles.gguf_files.gguf_models import GGUF_SERVED, MOST_RUNNING_SEQUENCES, layers_of_tensor
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.llamacpp.architectures import ARCHITECTURES
from splitinference_segment.llamacpp.engine import LlamaEngine
from splitinference_segment.llamacpp.kv import MOST_SLOTS, SPARE
from splitinference_segment.llamacpp.slices import cut, open_model
from splitinference_segment.settings import Settings

TOKENS = [(5 * i * i + i + 1) % VOCABULARY for i in range(40)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models"), "llama")


def refused(path: Path, start: int = 0, end: int = BLOCKS + 2) -> str:
    with pytest.raises(ModelRefusedError) as why:
        engine(path, start, end)
    return str(why.value)


@pytest.mark.parametrize("architecture", ["mamba", "bert", "nonsense"])
def test_an_architecture_that_is_not_in_the_table(tmp_path: Path, architecture: str) -> None:
    metadata, tensors = random_model("llama")
    other = {key.replace("llama.", f"{architecture}."): value for key, value in metadata.items()} | {"general.architecture": architecture}
    said = refused(write_gguf(tmp_path / "m.gguf", other, tensors))
    assert said.startswith(f"GGUF architecture '{architecture}' is not served; these are: llama, qwen2")


@pytest.mark.parametrize("version", [1, 4, 99])
def test_a_version_that_is_not_known(tmp_path: Path, version: int) -> None:
    assert f"version {version} of GGUF" in refused(write_gguf(tmp_path / "m.gguf", *random_model("llama"), version=version))


@pytest.mark.parametrize("left", [3, 100, 0.3, 0.99])
def test_a_truncated_file(tmp_path: Path, llama: Path, left: float) -> None:
    data = llama.read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[: int(left if left >= 1 else left * len(data))])
    assert "cut short" in refused(tmp_path / "m.gguf")


def in_parts(folder: Path, count: int = 3) -> list[Path]:
    metadata, tensors = random_model("llama")
    names, paths = list(tensors), []
    for index in range(count):
        own = {name: tensors[name] for name in names[index::count]}
        split = {"split.no": index, "split.count": count, "split.tensors.count": len(names)}
        about = metadata | split if index == 0 else {"general.architecture": "llama"} | split
        paths.append(write_gguf(folder / f"m-{index + 1:05d}-of-{count:05d}.gguf", about, own))
    return paths


def test_a_model_in_parts_is_the_same_model(tmp_path: Path, llama: Path) -> None:
    paths = in_parts(tmp_path)
    unsplit = Unsplit(llama)
    for path in (tmp_path, paths[1]):
        chain = Chain(path, cuts(BLOCKS, 2))
        unsplit.model.truncate(0, 0)
        same(chain.logits(TOKENS[:20], 0), unsplit.last(TOKENS[:20], 0))
        chain.close()
    unsplit.model.close()


def test_a_missing_part(tmp_path: Path) -> None:
    paths = in_parts(tmp_path)
    paths[1].unlink()
    assert "m-00002-of-00003.gguf is missing" in refused(tmp_path)
    assert "m-00002-of-00003.gguf is missing" in refused(paths[0])


def test_a_folder_without_or_with_several_models(tmp_path: Path) -> None:
    assert "there is no *.gguf file" in refused(tmp_path)
    make(tmp_path, "llama")
    make(tmp_path, "qwen2")
    assert "there are 2 GGUF models" in refused(tmp_path)


def test_a_block_without_tensors(tmp_path: Path) -> None:
    metadata, tensors = random_model("llama")
    path = write_gguf(tmp_path / "m.gguf", metadata, {name: each for name, each in tensors.items() if not name.startswith("blk.3.")})
    assert "no tensors for block 3 of 8" in refused(path)
    engine(path, 5, 8).close()  # a segment that does not need it


def test_a_tensor_that_libllama_misses_or_that_has_another_shape(tmp_path: Path) -> None:
    metadata, tensors = random_model("llama")
    without = {name: each for name, each in tensors.items() if name != "blk.3.attn_k.weight"}
    assert "blk.3.attn_k.weight" in refused(write_gguf(tmp_path / "a.gguf", metadata, without))
    other = tensors | {"blk.3.attn_k.weight": np.zeros((48, 64), np.float32)}
    assert "blk.3.attn_k.weight has 48 rows, the metadata says 32" in refused(write_gguf(tmp_path / "b.gguf", metadata, other))


@pytest.mark.parametrize(("start", "end", "why"), [
    (0, 1, "have no block"), (9, 10, "have no block"), (0, 11, "are not in this model, which has 0:10"), (4, 4, "are not in this model"),
])  # fmt: skip
def test_layers_that_cannot_be_a_segment(llama: Path, start: int, end: int, why: str) -> None:
    assert why in refused(llama, start, end)


def test_smollm3_is_cut_at_multiples_of_four(tmp_path: Path) -> None:
    """Each fourth block has no RoPE, which libllama knows by the block's number alone."""
    path = make(tmp_path, "smollm3", blocks=12)
    assert "cannot be cut before block 3: cuts are at multiples of 4" in refused(path, 0, 4)
    chain, unsplit = Chain(path, [0, 5, 9, 14]), Unsplit(path)
    same(chain.logits(TOKENS[:30], 0), unsplit.last(TOKENS[:30], 0))
    chain.close()
    unsplit.model.close()


def test_sizes_of_gemma_whose_constants_hang_on_the_number_of_blocks(tmp_path: Path) -> None:
    path = make(tmp_path, "gemma3", blocks=62)
    assert "another attention scale" in refused(path, 0, 30)
    engine(path, 0, 64).close()
    path = make(tmp_path, "gemma3", blocks=64)
    assert "another attention scale" in refused(path, 0, 63)


def test_blocks_that_differ_in_their_kv(tmp_path: Path) -> None:
    metadata, tensors = random_model("llama")
    metadata["llama.attention.head_count_kv"] = [2] * 7 + [4]
    wide = {
        name: (np.concatenate([each, each]) if name in ("blk.7.attn_k.weight", "blk.7.attn_v.weight") else each)
        for name, each in tensors.items()
    }
    assert "is not the same for all blocks" in refused(write_gguf(tmp_path / "m.gguf", metadata, wide))


def test_gemma2_is_exact_but_for_the_scale_of_its_input(tmp_path: Path) -> None:
    """libllama multiplies whatever comes in by √width, so a slice divides by it before; at 64 that is exact, elsewhere a bit is lost."""
    path = make(tmp_path, "gemma2")
    chain, unsplit = Chain(path, cuts(BLOCKS, 3)), Unsplit(path)
    same(chain.logits(TOKENS[:30], 0), unsplit.last(TOKENS[:30], 0))
    chain.close()
    unsplit.model.close()


def loads(path: Path) -> str:
    """In a process of its own, which libllama may end: `loads`, the refusal, or how the process ended."""
    program = "import sys; from pathlib import Path; sys.path[:0] = sys.argv[2].split(':'); from chains import engine\n"
    program += f"engine(Path(sys.argv[1]), 0, {BLOCKS + 2}).close()"
    words = [sys.executable, "-c", program, str(path), ":".join(sys.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return "loads" if done.returncode == 0 else last if done.returncode == 1 else f"ended with {done.returncode}"


@pytest.mark.parametrize("key", [
    "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length",
    "expert_count", "expert_used_count", "block_count", "rope.dimension_count", "attention.sliding_window",
])  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_and_end_no_process(tmp_path: Path, key: str) -> None:
    metadata, tensors = random_model("gpt-oss")
    for wrong in (0, 1 << 31):
        said = loads(write_gguf(tmp_path / f"{wrong}.gguf", metadata | {f"gpt-oss.{key}": wrong}, tensors))
        assert "ModelRefusedError" in said or (key == "attention.sliding_window" and said == "loads"), (wrong, said)
    without = {name: value for name, value in metadata.items() if name != f"gpt-oss.{key}"}
    said = loads(write_gguf(tmp_path / "without.gguf", without, tensors))
    assert said == "loads" or "ModelRefusedError" in said, said


def test_a_digest_that_would_not_be_checked(llama: Path) -> None:
    with pytest.raises(ModelRefusedError, match="does not check digests"):
        LlamaEngine(Settings("x", "x", llama, 0, BLOCKS + 2, engine="llamacpp", model_digest="sha256:" + "0" * 64))


def test_more_sequences_than_a_context_holds(llama: Path) -> None:
    with pytest.raises(ModelRefusedError, match="SI_MAX_SEQUENCES is 236, expected at most 235"):
        engine(llama, 0, BLOCKS + 2, sequences=236)
    for start, end in ((0, 5), (5, BLOCKS + 2), (0, BLOCKS + 2)):
        engine(llama, start, end, sequences=235).close()


def test_what_a_node_fetches(llama: Path) -> None:
    """The ranges of a slice are its tensors' and no others, in each file."""
    source = open_model(llama)
    part = cut(source, 3, 5)
    ranges = part.ranges()[llama.name]
    own = [
        name
        for name in source.model.tensors
        if name.startswith(("blk.2.", "blk.3.")) or name in ("output_norm.weight", "rope_freqs.weight")
    ]
    assert sorted(offset for offset, _ in ranges) == sorted(source.model.places[name].offset for name in own)


def test_the_planner_and_the_engine_know_the_same_architectures() -> None:
    assert set(ARCHITECTURES) == set(GGUF_SERVED)
    assert MOST_SLOTS - 16 - SPARE - 1 == MOST_RUNNING_SEQUENCES


def test_a_file_whose_other_tensors_are_holes(tmp_path: Path, llama: Path) -> None:
    """What a node fetches: the file's length and header, and at their places the tensors that these layers need."""
    source, edges, paths = open_model(llama), cuts(BLOCKS, 3), []
    whole = llama.read_bytes()
    header = min(place.offset for place in source.model.places.values())
    for start, end in itertools.pairwise(edges):
        paths.append(tmp_path / f"{start}.gguf")
        data = bytearray(whole[:header]) + bytes(len(whole) - header)
        for name, place in source.model.places.items():
            if set(layers_of_tensor(name, BLOCKS, False)) & set(range(start, end)):
                size = source.model.tensors[name].bytes
                data[place.offset : place.offset + size] = whole[place.offset : place.offset + size]
        paths[-1].write_bytes(data)
    chains = [Chain(path, [start, end]) for path, (start, end) in zip(paths, itertools.pairwise(edges), strict=True)]
    chain, unsplit = Chain(llama, []), Unsplit(llama)
    chain.stages = [each.stages[0] for each in chains]
    same(chain.logits(TOKENS[:20], 0), unsplit.last(TOKENS[:20], 0))
    unsplit.model.close()
