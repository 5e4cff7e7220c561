"""The node's cache of weights: named by content, checked, shared, bounded, and only for those who may have the files."""

import fcntl
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from splitinference.inpod import model_cache, script
from splitinference.inpod.model_cache import GRACE_SECONDS, blob_path, make_room, place
from tests.inpod.hub import FakeHub, a_hub
from tests.inpod.test_fetch_model import FILES, FIRST, SECOND


def fetch(
    hub: FakeHub, root: Path, layers: str = "0:4/4", *, token: str = "", gib: str = "0", model: str = "m"
) -> subprocess.CompletedProcess[str]:
    text = script("fetch_model").replace("time.sleep(min(2**attempt, 20))", "time.sleep(0)")  # a test need not wait
    command = [sys.executable, "-c", text, hub.url, "owner/model", "main", str(root / model), layers, str(root), gib]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, "HF_TOKEN": token})


def blob(root: Path, content: bytes) -> Path:
    return Path(blob_path(str(root), hashlib.sha256(content).hexdigest()))


def done_well(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr


def test_a_file_is_kept_once_under_its_digest_for_all_models(tmp_path: Path):
    with a_hub(FILES) as hub:
        done_well(fetch(hub, tmp_path))
        whole = [r for r in hub.stored if r.headers.get("range") != "bytes=0-0"]
        done_well(fetch(hub, tmp_path, model="other"))
        assert [r for r in hub.stored if r.headers.get("range") != "bytes=0-0"] == whole, "nothing is fetched twice"
    assert blob(tmp_path, FIRST).read_bytes() == FIRST
    paths = [tmp_path / model / "a.safetensors" for model in ("m", "other")]
    assert {path.stat().st_ino for path in paths} == {blob(tmp_path, FIRST).stat().st_ino}
    assert not any(path.is_symlink() for path in paths), "a reader refuses links that leave the folder"


@pytest.mark.parametrize("where", ["blob", "folder"])
def test_a_file_that_was_changed_and_kept_its_size_is_fetched_anew(tmp_path: Path, where: str):
    with a_hub(FILES) as hub:
        done_well(fetch(hub, tmp_path))
        shown = tmp_path / "m" / "a.safetensors"
        if where == "blob":
            blob(tmp_path, FIRST).write_bytes(bytes(len(FIRST)))
        else:
            shown.unlink()
            shown.write_bytes(bytes(len(FIRST)))
        done_well(fetch(hub, tmp_path))
    assert shown.read_bytes() == FIRST
    assert blob(tmp_path, FIRST).read_bytes() == FIRST


def test_a_folder_of_an_earlier_version_comes_into_the_cache_without_a_download(tmp_path: Path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a.safetensors").write_bytes(FIRST)
    with a_hub(FILES) as hub:
        done_well(fetch(hub, tmp_path, "0:1/4"))
        assert [r.headers.get("range") for r in hub.stored if r.path == "/a.safetensors"] == ["bytes=0-0"]
    assert blob(tmp_path, FIRST).exists()


@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_weights_in_the_cache_are_not_for_those_who_may_not_have_them(tmp_path: Path, token: str):
    """Not even under another model's name, where the node has the very file already."""
    with a_hub(FILES, token="hf_secret", gated=True) as hub:
        done_well(fetch(hub, tmp_path, token="hf_secret"))
        done = fetch(hub, tmp_path, token=token, model="mine")
    assert done.returncode == 1
    assert "the hub says 401" in done.stderr
    assert not list((tmp_path / "mine").glob("*.safetensors")) if (tmp_path / "mine").exists() else True


# --- room -----------------------------------------------------------------------------------------------------------------------------


def a_cache(root: Path, **ages: float) -> dict[str, Path]:
    """Files of 100 bytes, used so many seconds ago."""
    made = {}
    for name, age in ages.items():
        path = blob(root, name.encode())
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(name.encode().ljust(100))
        place(str(path), str(root / "model" / name))
        os.utime(path, (time.time() - age,) * 2)
        made[name] = path
    return made


OLD = 10 * GRACE_SECONDS


def test_what_was_used_least_lately_goes_first_with_its_links(tmp_path: Path):
    made = a_cache(tmp_path, older=OLD + 2, oldest=OLD + 3, newer=OLD)
    assert make_room(str(tmp_path), 150, 300) == 200
    assert [name for name, path in made.items() if path.exists()] == ["newer"]
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["newer"], "a link would keep the bytes"


def test_what_fits_already_stays(tmp_path: Path):
    made = a_cache(tmp_path, a=OLD, b=OLD)
    assert make_room(str(tmp_path), 100, 300) == 0
    assert all(path.exists() for path in made.values())


def test_a_file_that_a_segment_has_in_use_stays(tmp_path: Path):
    made = a_cache(tmp_path, used=OLD + 9, free=OLD)
    with (tmp_path / "model" / "used").open("rb") as file:  # as the segment opens it: by the model's folder
        fcntl.flock(file, fcntl.LOCK_SH)
        make_room(str(tmp_path), 100, 200)
        assert [name for name, path in made.items() if path.exists()] == ["used"]
    make_room(str(tmp_path), 200, 200)
    assert not made["used"].exists(), "once the segment has ended it may go"


def test_what_was_used_a_moment_ago_and_what_this_pod_needs_stay(tmp_path: Path):
    made = a_cache(tmp_path, lately=GRACE_SECONDS / 2, needed=OLD, free=OLD - 1)
    make_room(str(tmp_path), 100, 300, keep=[str(made["needed"])])
    assert [name for name, path in made.items() if path.exists()] == ["lately", "needed"]


def test_a_cache_full_of_what_is_in_use_says_so_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model_cache, "GIB", 100)
    made = a_cache(tmp_path, a=0, b=0)
    with pytest.raises(ValueError, match=r"holds 2\.0 of 2\.5 GiB, all of it in use .* 1\.0 GiB more .*modelCacheGiB"):
        make_room(str(tmp_path), 100, 250)
    assert all(path.exists() for path in made.values())
    with pytest.raises(ValueError, match=r"one file has 3\.0 GiB, the model cache may have 2\.5 GiB"):
        make_room(str(tmp_path), 300, 250)


def test_a_download_that_nobody_goes_on_with_is_removed_after_a_day(tmp_path: Path):
    part = blob(tmp_path, b"x").with_suffix(".pod.part")
    part.parent.mkdir()
    part.write_bytes(bytes(100))
    os.utime(part, (time.time() - 2 * 3600,) * 2)
    with pytest.raises(ValueError, match="in use"):
        make_room(str(tmp_path), 100, 100)
    os.utime(part, (time.time() - 2 * 86_400,) * 2)
    assert make_room(str(tmp_path), 100, 100) == 100


def test_the_limit_holds_for_a_fetch(tmp_path: Path):
    limit = f"{(len(FIRST) + len(SECOND) - 1) / 2**30:.12f}"
    with a_hub(FILES) as hub:
        done = fetch(hub, tmp_path, "0:4/4", gib=limit)
        assert done.returncode == 1, "it needs both, and they do not fit"
        assert "segments.modelCacheGiB" in done.stderr
        done_well(fetch(hub, tmp_path, "0:1/4", gib=limit))
        os.utime(blob(tmp_path, FIRST), (time.time() - OLD,) * 2)
        done_well(fetch(hub, tmp_path, "2:3/4", gib=limit, model="other"))
    assert not blob(tmp_path, FIRST).exists()
    assert not (tmp_path / "m" / "a.safetensors").exists()
    assert blob(tmp_path, SECOND).read_bytes() == SECOND


@pytest.mark.parametrize("digest", ["../../etc/passwd", "A" * 64, "0" * 63, ""])
def test_a_hubs_digest_is_no_path(tmp_path: Path, digest: str):
    with pytest.raises(ValueError, match="is no SHA-256"):
        blob_path(str(tmp_path), digest)
