"""GGUF models as pods read and fetch them: from a folder and from a hub, run as the pods run the scripts."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from splitinference.controller.manifests import profile_pod
from splitinference.inpod import script
from splitinference.inpod.fetch_gguf import LARGEST_GAP
from splitinference_gateway.tokens.positions import positions, vocabulary
from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from splitinference_modelfiles.gguf_files.gguf import GgufModel, joined_gguf, parts_of, read_gguf
from splitinference_modelfiles.gguf_files.gguf_folder import gguf_model
from splitinference_modelfiles.gguf_files.gguf_models import GGUF_KEY, layers_of_tensor
from tests.inpod.hub import COMMIT, FakeHub, a_hub
from tests.inpod.test_read_model import safetensors
from tests.modelfiles.gguf_files import llama, reader, split

WHOLE = llama(blocks=6, kind="F16", tied=False)
DATA = WHOLE.content(filled=True)
NAMES = parts_of("m-00001-of-00002.gguf")
PARTS = dict(zip(NAMES, (part.content(filled=True) for part in split(WHOLE, 2)), strict=True))


def run(name: str, *words: str, token: str = "") -> subprocess.CompletedProcess[str]:
    text = script(name).replace("time.sleep(min(2**attempt, 20))", "time.sleep(0)")  # a test need not wait
    command = [sys.executable, "-c", text, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HF_TOKEN": token})


def kept(done: subprocess.CompletedProcess[str]) -> profile_pod.Kept:
    assert done.returncode == 0, done.stderr
    packed = profile_pod.from_log(done.stdout)
    assert packed is not None
    found = profile_pod.unpack(packed)
    assert found is not None
    return found


def folder_of(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- reading ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "said"), [({"m.gguf": DATA}, ()), (PARTS, ("", "LlamaCpp")), ({"q/m.gguf": DATA}, ("", "Auto", "q/m.gguf"))]
)
def test_a_folder_with_a_gguf_model_is_read(tmp_path, files, said):
    found = kept(run("read_model", str(folder_of(tmp_path, files)), "/models/m", "20", *said))
    assert set(found.tensors) == set(WHOLE.tensors)
    assert found.config[GGUF_KEY]["files"] == sorted(files)
    assert found.config[GGUF_KEY]["metadata"]["llama.block_count"] == 6


def test_safetensors_win_where_the_engine_is_not_named(tmp_path):
    files = {"m.gguf": DATA, "config.json": b'{"model_type": "llama"}', "a.safetensors": safetensors({"w": ("BF16", [2], 4)})}
    folder = str(folder_of(tmp_path, files))
    assert kept(run("read_model", folder, "/m")).config == {"model_type": "llama"}
    assert kept(run("read_model", folder, "/m", "0", "", "Torch")).config == {"model_type": "llama"}
    assert GGUF_KEY in kept(run("read_model", folder, "/m", "0", "", "LlamaCpp")).config
    assert GGUF_KEY in kept(run("read_model", folder, "/m", "0", "", "Auto", "m.gguf")).config


@pytest.mark.parametrize(
    ("files", "said", "reason"),
    [
        ({"a.gguf": DATA, "b.gguf": DATA}, (), "there are 2 GGUF models: a.gguf, b.gguf; name one in spec.model.file"),
        ({NAMES[0]: PARTS[NAMES[0]]}, (), f"part {NAMES[1]} is missing"),
        ({"m.gguf": DATA[:-1]}, (), "m.gguf is cut short"),
        ({"m.gguf": DATA}, ("", "Auto", "x.gguf"), "there is no file x.gguf; there is one GGUF model: m.gguf"),
        ({"m.gguf": DATA}, ("", "Auto", "../x.gguf"), "../x.gguf is outside of the model's folder"),
        ({"m.gguf": DATA}, ("sha256:" + "5" * 64,), "spec.model.digest is available for safetensors alone"),
        ({"m.gguf": DATA, "config.json": b"{}"}, ("", "Torch"), "m.gguf needs the engine LlamaCpp (spec.model.engine)"),
        ({"config.json": b"{}"}, ("", "LlamaCpp"), "there is no *.gguf file"),
        ({"config.json": b"{}"}, (), "there is no *.safetensors file"),
    ],
)
def test_a_folder_that_is_not_clear_is_refused(tmp_path, files, said, reason):
    done = run("read_model", str(folder_of(tmp_path, files)), "/models/m", "0", *said)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    outside = folder_of(tmp_path / "other", {"m.gguf": DATA})
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "m.gguf").symlink_to(outside / "m.gguf")
    assert "leaves the model's folder" in run("read_model", str(tmp_path / "m"), "/models/m").stderr


def asked_bytes(hub: FakeHub) -> int:
    ranges = [request.headers["range"].removeprefix("bytes=").split("-") for request in hub.stored]
    return sum(int(last) - int(first) + 1 for first, last in ranges)


def test_of_a_hub_only_the_headers_are_read():
    large = llama(blocks=2, kind="F32", **{"general.description": "x" * 400_000})
    with a_hub({"m.gguf": large.content() + bytes(8 << 20), "README.md": b"read"}) as hub:
        found = kept(run("read_hub", hub.url, "owner/model", "main"))
        assert asked_bytes(hub) <= 3 * 2**18 + 1, "one byte tells whether one may read"
    assert (found.commit, set(found.tensors)) == (COMMIT, set(large.tensors))


def test_a_repository_with_many_quantizations_needs_a_name():
    files = {"m-Q4_0.gguf": DATA, "m-Q8_0.gguf": DATA, **{f"bf16/{name}": data for name, data in PARTS.items()}}
    with a_hub(files) as hub:
        done = run("read_hub", hub.url, "owner/model", "main")
        assert f"there are 3 GGUF models: bf16/{NAMES[0]}, m-Q4_0.gguf, m-Q8_0.gguf; name one in spec.model.file" in done.stderr
        found = kept(run("read_hub", hub.url, "owner/model", "main", "", "Auto", f"bf16/{NAMES[1]}"))
    assert found.config[GGUF_KEY]["files"] == [f"bf16/{name}" for name in NAMES]


def test_a_gated_repository_is_read_with_the_token():
    with a_hub({"m.gguf": DATA}, token="hf_secret") as hub:
        done = run("read_hub", hub.url, "owner/model", "main")
        assert done.returncode == 1
        done = run("read_hub", hub.url, "owner/model", "main", token="hf_secret")
        assert not any("authorization" in request.headers for request in hub.stored)
    assert set(kept(done).tensors) == set(WHOLE.tensors)
    assert "hf_secret" not in done.stdout + done.stderr


# --- fetching --------------------------------------------------------------------------------------------------------------------------


def fetched(hub: FakeHub, folder: Path, layers: str, *more: str) -> subprocess.CompletedProcess[str]:
    return run("fetch_gguf", hub.url, "owner/model", "main", str(folder), layers, *more)


def model_in(data: Mapping[str, bytes]) -> GgufModel:
    return joined_gguf([(name, read_gguf(reader(content), name, len(content))) for name, content in data.items()])


@pytest.mark.parametrize("layers", ["0:3/8", "3:5/8", "5:8/8", "0:8/8"])
@pytest.mark.parametrize("files", [{"m.gguf": DATA}, PARTS], ids=["one file", "parts"])
def test_a_segment_gets_the_tensors_of_its_layers_at_their_places(tmp_path, files, layers):
    start, end = (int(number) for number in layers.split("/")[0].split(":"))
    with a_hub(files) as hub:
        done = fetched(hub, tmp_path, layers, next(iter(files)))
        assert done.returncode == 0, done.stderr
        headers = sum(len(data) for data in files.values())  # a header's request is larger than these small files
        needed = sum(i.bytes for n, i in model_in(files).tensors.items() if any(start <= x < end for x in layers_of_tensor(n, 6, False)))
        assert asked_bytes(hub) <= max(len(files) * 2**18, headers) + needed + LARGEST_GAP
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    here = {name: (tmp_path / name).read_bytes() for name in files}
    assert {name: len(data) for name, data in here.items()} == {name: len(data) for name, data in files.items()}
    model = model_in(here)
    assert model.metadata == model_in(files).metadata
    for name, info in model.tensors.items():
        place = model.places[name]
        own = slice(place.offset, place.offset + info.bytes)
        if any(start <= layer < end for layer in layers_of_tensor(name, 6, False)):
            assert here[place.file][own] == files[place.file][own], name


def test_what_other_segments_need_takes_no_room_on_the_disk(tmp_path):
    large = llama(blocks=8, kind="F32")
    large.tensors = {**large.tensors, **{f"blk.{n}.ffn_up.weight": ("F32", (2048, 64)) for n in range(8)}}
    data = large.content(filled=True)
    with a_hub({"m.gguf": data}) as hub:
        assert fetched(hub, tmp_path, "4:5/10", "m.gguf").returncode == 0
        assert asked_bytes(hub) < 2**18 + len(data) // 4
    about = (tmp_path / "m.gguf").stat()
    assert about.st_size == len(data)
    assert about.st_blocks * 512 < len(data) // 2


def test_a_part_is_fetched_once_and_given_from_the_cache_to_those_who_may_have_it(tmp_path):
    cache = (str(tmp_path / "cache"), "1")
    with a_hub({"m.gguf": DATA}) as hub:
        assert fetched(hub, tmp_path / "cache" / "m-0-3-8", "0:3/8", "m.gguf", *cache).returncode == 0
        once = len(hub.stored)
        assert fetched(hub, tmp_path / "cache" / "other-0-3-8", "0:3/8", "m.gguf", *cache).returncode == 0
        assert len(hub.stored) - once < once, "only the header is read again"
    files = [tmp_path / "cache" / folder / "m.gguf" for folder in ("m-0-3-8", "other-0-3-8")]
    assert files[0].samefile(files[1])
    with a_hub({"m.gguf": DATA}, token="hf_secret") as hub:
        assert fetched(hub, tmp_path / "cache" / "third", "0:3/8", "m.gguf", *cache).returncode == 1
    assert not (tmp_path / "cache" / "third").exists()


def test_a_cache_without_room_refuses_with_numbers(tmp_path):
    with a_hub({"m.gguf": DATA}) as hub:
        done = fetched(hub, tmp_path / "cache" / "m", "0:3/8", "m.gguf", str(tmp_path / "cache"), "0.00001")
    assert done.returncode == 1
    assert "the model cache may have 0.0 GiB" in done.stderr


def test_an_interrupted_part_is_continued(tmp_path, monkeypatch):
    from splitinference.inpod.fetch_gguf import Source, fetch_runs

    with a_hub({"m.gguf": DATA}) as hub:
        source, target = Source(f"{hub.url}/owner/model/resolve/{COMMIT}/m.gguf", ""), tmp_path / "m.gguf"
        first, beyond = (2000, 3000), (len(DATA) + 10, len(DATA) + 20)
        monkeypatch.setattr("splitinference.inpod.hub_client.TRIES", 1)
        with pytest.raises((OSError, ValueError)):
            fetch_runs(source, str(target), DATA[:1000], len(DATA), [first, beyond])
        before = len(hub.stored)
        fetch_runs(source, str(target), DATA[:1000], len(DATA), [first, (4000, 5000)])
        assert [request.headers["range"] for request in hub.stored[before:]] == ["bytes=4000-4999"]
    assert target.read_bytes()[2000:3000] == DATA[2000:3000]
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


# --- the gateway's tokenizer -----------------------------------------------------------------------------------------------------------


def check_tokenizer(folder: Path) -> None:
    found = ModelTokenizer(folder)
    assert (found.size, found.end_tokens, positions(folder), vocabulary(folder)) == (96, {2}, 512, 96)
    assert found.decode(found.encode("ab ab", special_tokens=True)) == "ab ab"
    assert found.template is not None


def test_the_gateways_files_are_written_from_a_folder(tmp_path):
    folder, out = folder_of(tmp_path / "model", PARTS), tmp_path / "out"
    out.mkdir()
    assert run("write_tokenizer", str(out), NAMES[0], str(folder)).returncode == 0
    check_tokenizer(out)


def test_the_gateways_files_are_written_from_a_hub(tmp_path):
    with a_hub({"m.gguf": DATA}) as hub:
        done = run("write_tokenizer", str(tmp_path), "m.gguf", hub.url, "owner/model", "main")
    assert done.returncode == 0, done.stderr
    check_tokenizer(tmp_path)


def test_a_tokenizer_that_cannot_be_built_is_refused(tmp_path):
    data = llama(**{"tokenizer.ggml.pre": "viking"}).content()
    done = run("write_tokenizer", str(tmp_path), "m.gguf", str(folder_of(tmp_path / "m", {"m.gguf": data})))
    assert (done.returncode, "tokenizer.ggml.pre is 'viking'" in done.stderr) == (1, True)
    found = kept(run("read_model", str(tmp_path / "m"), "/m"))
    assert "viking" in found.config[GGUF_KEY]["tokenizer"]["refused"], "and said when the model is planned"


def test_what_a_folder_has_is_what_the_reader_gives(tmp_path):
    model = gguf_model(str(folder_of(tmp_path, PARTS)), list(PARTS), NAMES[0])
    assert json.loads(json.dumps(list(model.tensors))) == list(WHOLE.tensors)
