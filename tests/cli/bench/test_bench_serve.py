"""What `bench serve` makes of measurements, and what it says where it cannot measure. The measuring itself: e2e/test_data_plane.py."""

import itertools
import json
import struct
from pathlib import Path

import jsonschema
import pytest

from splitinference.cli.bench.serving import peers as serve_peers
from splitinference.cli.bench.serving.containers import MeasurementError
from splitinference.cli.bench.serving.figures import (
    Measured,
    Percentiles,
    Round,
    cuts,
    cuts_with_blocks,
    per_core,
    prefill_ratio,
    setup,
    speed_ratio,
    token_parts,
    wait_ratio,
)
from splitinference.cli.bench.serving.machine import machine
from splitinference.cli.bench.serving.model import gguf_here, layer_bytes
from splitinference.cli.bench.serving.peers import Programs
from splitinference.cli.main import main
from splitinference.cli.schemas import schemas

SAMPLE = Path(__file__).parents[1] / "bench-serve.json"


def a_round(*, ms: float, tokens: int = 10, clients: int = 1, first_ms: float = 50.0, text: str = "as it should be") -> Round:
    one = Measured(first_ms=first_ms, gaps_ms=(10.0, 12.0), ms=ms, tokens=tokens, text=text)
    return Round(ms=ms, requests=(one,) * clients)


def test_tokens_of_all_clients_count() -> None:
    assert a_round(ms=500, tokens=10, clients=4).tokens_per_second == 80


def test_percentiles_are_values_that_were_seen() -> None:
    assert Percentiles.of([3.0, 1.0, 2.0]) == Percentiles(p50=2.0, p90=3.0, p99=3.0)


def test_a_ratio_is_taken_within_each_round() -> None:
    unsplit = [a_round(ms=100), a_round(ms=1000), a_round(ms=10)]  # a machine that is disturbed, and then is not
    assert speed_ratio([a_round(ms=200), a_round(ms=2000), a_round(ms=20)], unsplit) == 0.5


def test_many_clients_are_measured_against_what_as_many_cores_could_do() -> None:
    assert per_core([a_round(ms=1000, clients=8)], [a_round(ms=500)], cores=2) == 2.0


def test_what_the_links_need_is_not_counted_against_a_split_prefill() -> None:
    assert prefill_ratio([a_round(ms=1, first_ms=130)], [a_round(ms=1, first_ms=100)], transfer_ms=30) == 1.0


def test_parts_of_a_tokens_time_are_all_of_it() -> None:
    stages = {"a": {"computeMs": 10.0, "queueMs": 0.5, "linkMs": 1.0}, "b": {"computeMs": 12.0, "queueMs": 0.25, "linkMs": 0.0}}
    found = token_parts(27.0, {"stages": stages, "ingressMs": 2.0})
    assert found == {"compute": 22.0, "queue": 0.75, "links": 1.0, "ingress": 2.0, "rest": 1.25, "all": 27.0}


def test_another_text_in_one_round_is_told() -> None:
    rounds = [a_round(ms=10), a_round(ms=10, text="something else")]
    assert not setup("segments-3", 3, 12, rounds, ["as it should be"]).same_text_as_unsplit
    assert setup("segments-3", 3, 12, rounds[:1], ["as it should be"]).same_text_as_unsplit
    assert setup("llamacpp-segments-3", 3, 12, rounds, None).same_text_as_unsplit is None


@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_cuts_are_whole_and_even_in_bytes(segments: int) -> None:
    sizes = [0.0, *[7.0] * 30, 56.0]
    found = cuts(sizes, segments)
    assert found[0] == 0
    assert found[-1] == len(sizes)
    assert len(found) == segments + 1
    parts = [sum(sizes[a:b]) for a, b in itertools.pairwise(found)]
    assert max(parts) - min(parts) <= 2 * 7.0 or segments == 4  # in four, the head alone is a fifth of the model


def test_more_segments_than_balance_allows_still_have_a_layer_each() -> None:
    assert cuts([0.0, 1.0, 1.0, 100.0], 4) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("segments", [1, 2, 3, 4, 5])
def test_each_segment_of_llama_cpp_has_a_block(segments: int) -> None:
    """The head of a small model is as large as eight blocks: alone it would be the fairest fourth of four, and llama.cpp takes none."""
    blocks, head = 30, 31
    found = cuts_with_blocks([0.0, *[7.0] * blocks, 56.0], segments)
    assert found[0] == 0
    assert found[-1] == head + 1
    assert len(found) == segments + 1
    assert all(start <= blocks and end > 1 and start < end for start, end in itertools.pairwise(found))


def test_bytes_of_layers_come_from_the_files_headers(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": 100, "model.layers.0.mlp.up.weight": 30, "model.layers.1.mlp.up.weight": 40}
    at, header = 0, {}
    for name, size in tensors.items():
        header[name] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    assert layer_bytes(tmp_path) == [0.0, 30.0, 40.0, 100.0]


def test_a_folder_without_a_model_is_said(tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match="no safetensors"):
        layer_bytes(tmp_path)


def test_without_an_engine_one_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    assert main(["bench", "serve", "--model", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "bench serve runs the segment and gateway images in containers, and no Docker engine answers: start one.\n"
    )


def test_without_a_model_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPLITINFERENCE_CACHE", str(tmp_path))
    assert main(["bench", "serve"]) == 2
    assert "--model" in capsys.readouterr().err


# ---- other systems


def programs(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def no_spec(name: str) -> None:
    return None


@pytest.mark.parametrize("rpc", serve_peers.RPC_SERVERS)
def test_llama_cpps_programs_are_found_in_the_folder_or_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rpc: str) -> None:
    folder = programs(tmp_path, "llama-server", rpc)
    assert Programs.find(folder) == Programs(folder, rpc)
    monkeypatch.setenv("PATH", str(folder))
    assert Programs.find(None) == Programs(folder, rpc)


def test_what_is_missing_is_named_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    found = serve_peers.find(None, [], tmp_path / "m.gguf", "BF16")
    assert set(found.missing) == {"llama.cpp", "llama.cpp RPC", "vLLM", "exo", "Petals"}
    assert "--llama-bin" in found.missing["llama.cpp"]
    assert all("--server" in found.missing[name] for name in ("vLLM", "exo", "Petals"))
    without_rpc = serve_peers.find(programs(tmp_path, "llama-server"), ["vLLM=http://127.0.0.1:8000"], tmp_path / "m.gguf", "BF16")
    assert set(without_rpc.missing) == {"llama.cpp RPC", "exo", "Petals"}
    assert "GGML_RPC" in without_rpc.missing["llama.cpp RPC"]
    assert without_rpc.servers == {"vLLM": "http://127.0.0.1:8000"}
    assert "has no program llama-server" in str(Programs.find(tmp_path / "elsewhere"))


def test_a_program_that_is_installed_is_not_said_to_be_missing() -> None:
    found = serve_peers.others({}, lambda program: "/usr/bin/vllm" if program == "vllm" else None, no_spec)
    assert "it is installed: start it" in found["vLLM"]
    assert "not installed" in found["exo"]


@pytest.mark.parametrize("given", ["vllm", "=http://x:1", "vllm=x:1", "vllm=https://x:1"])
def test_a_server_has_a_name_and_a_url(tmp_path: Path, given: str) -> None:
    with pytest.raises(MeasurementError, match="NAME=http"):
        serve_peers.find(None, [given], tmp_path / "m.gguf", "BF16")


def test_ratios_beside_llama_cpp_are_taken_within_rounds_and_null_where_it_did_not_run() -> None:
    def rounds(*ms: float) -> list[Round]:
        return [a_round(ms=each, first_ms=each) for each in ms]

    three, server, rpc = rounds(100, 1000, 10), rounds(90, 950, 9), rounds(300, 3000, 30)
    taken = {("llamacpp-segments-3", "one"): three, ("llama.cpp", "one"): server, ("llama.cpp-rpc-3", "one"): rpc}
    taken |= {("llamacpp-segments-3", "long"): three, ("llama.cpp", "long"): server}
    found = serve_peers.ratios(taken, "llama.cpp-2-threads")
    assert found.three_segments_by_unsplit == 0.9
    assert found.three_segments_by_rpc == 3.0
    assert found.first_token_by_unsplit == pytest.approx(1.111)
    assert found.three_segments_by_server_several_clients is None
    assert found.torch_one_segment_by_unsplit is None
    assert wait_ratio(three, server) == pytest.approx(1.111)


CPUINFO = """processor\t: 0
model name\t: Some Processor
flags\t\t: fpu sse2 avx avx2 fma avx512_bf16 amx_tile ht

processor\t: 1
model name\t: Some Processor
flags\t\t: fpu sse2 avx avx2 fma avx512_bf16 amx_tile ht
"""


def test_the_machine_is_described_by_what_decides_its_speed() -> None:
    found = machine(CPUINFO, "MemTotal:       2048000 kB\nMemFree: 1 kB\n", cores=2, load=(3.5, 4.0))
    assert found.processor == "Some Processor"
    assert found.flags == ("amx_tile", "avx", "avx2", "avx512_bf16", "fma")
    assert (found.memory_mib, found.cores, found.load) == (2000, 2, (3.5, 4.0))
    assert found.is_busy
    assert not machine(CPUINFO, "", cores=2, load=(0.2,)).is_busy


def test_a_processor_that_has_no_such_lines_is_still_described() -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimd bf16 i8mm sve\n"
    assert machine(arm, "", cores=1, load=()).flags == ("asimd", "bf16", "i8mm", "sve")
    assert machine("", "", cores=1, load=()).processor


def test_without_a_gguf_file_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITINFERENCE_CACHE", str(tmp_path))
    with pytest.raises(MeasurementError, match="--gguf"):
        gguf_here()
    (tmp_path / "models" / "m").mkdir(parents=True)
    (tmp_path / "models" / "m" / "m.gguf").write_bytes(b"GGUF")
    assert gguf_here() == tmp_path / "models" / "m" / "m.gguf"


def test_no_rounds_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--model", str(tmp_path), "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err


@pytest.mark.parametrize("segments", [["1"], ["3", "4"], ["0", "1", "3"]])
def test_the_segments_that_ratios_need_have_to_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str], segments: list[str]) -> None:
    assert main(["bench", "serve", "--model", str(tmp_path), "--segments", *segments]) == 2
    assert "the ratios need 1 and 3" in capsys.readouterr().err


def test_a_report_that_was_measured_is_what_the_schema_says() -> None:
    jsonschema.validate(json.loads(SAMPLE.read_text()), schemas()["bench-serve.schema.json"])
