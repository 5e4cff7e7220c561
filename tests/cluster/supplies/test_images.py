"""When an image must be built anew, and what reaches its build."""

import json
from pathlib import Path

import pytest

from e2e.cluster.machine.engine import Engine
from e2e.cluster.settings import Settings
from e2e.cluster.supplies.images import content_key, copied, pip_settings, prune, sources

DOCKERFILE = """ARG BASE
FROM ${BASE} AS build
# COPY nothing/of/this /x
COPY --chmod=755 images/x/run.sh \\
     images/x/lib/ /opt/
FROM ${BASE}
COPY --from=build /opt /opt
ADD pyproject.toml /
"""


def test_what_a_dockerfile_takes_from_its_context():
    assert copied(DOCKERFILE) == ["images/x/run.sh", "images/x/lib/", "pyproject.toml"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "images/x/lib").mkdir(parents=True)
    (tmp_path / "images/x/run.sh").write_text("run")
    (tmp_path / "images/x/lib/a.py").write_text("a")
    (tmp_path / "images/x/README.md").write_text("not copied")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def key(tree: Path, base: str = "sha256:1") -> str:
    return content_key(tree / "Dockerfile", tree, base)


def test_nothing_changed_nothing_is_built(tree: Path):
    before = key(tree)
    (tree / "images/x/README.md").write_text("changed")
    (tree / "images/x/lib/__pycache__").mkdir()
    (tree / "images/x/lib/__pycache__/a.pyc").write_bytes(b"compiled")
    assert key(tree) == before


@pytest.mark.parametrize("path", ["images/x/run.sh", "images/x/lib/a.py", "pyproject.toml", "Dockerfile", "images/x/lib/new.py"])
def test_a_file_that_is_copied_in_changes_the_image(tree: Path, path: str):
    before = key(tree)
    (tree / path).write_text("FROM x\nCOPY pyproject.toml /\n")
    assert key(tree) != before


def test_a_new_base_changes_the_image(tree: Path):
    assert key(tree) != key(tree, "sha256:2")


def test_becoming_executable_changes_the_image(tree: Path):
    before = key(tree)
    (tree / "images/x/run.sh").chmod(0o755)
    assert key(tree) != before


@pytest.mark.parametrize("name", sorted(sources()))
def test_every_image_has_a_dockerfile_and_all_that_it_copies(name: str):
    source = sources()[name]
    root = Path(__file__).resolve().parents[3]
    assert [each for each in copied(source.dockerfile.read_text()) if not list(root.glob(each.rstrip("/")))] == []


def test_pip_is_told_where_packages_are_but_not_of_certificates_here(tmp_path: Path):
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://one.example/simple\ncert = /etc/ssl/x.pem\ntimeout = 9\n")
    text = pip_settings({"PIP_CONFIG_FILE": str(file), "PIP_INDEX_URL": "https://two.example/simple", "PIP_CERT": "/x"})
    assert text.splitlines()[0] == "[global]"
    assert "index-url = https://two.example/simple" in text
    assert "timeout = 9" in text
    assert "cert" not in text


class Listing(Engine):
    """An engine that knows some images and notes what is removed."""

    def docker(
        self, *words: str, stdin: str | bytes | None = None, check: bool = True, log: Path | None = None, timeout: float | None = None
    ) -> str:
        if words[0] == "rmi":
            with Path(self.client).open("a") as notes:
                notes.write(f"{words[1]}\n")
        return "sha256:old localhost/splitinference/segment:aaa\nsha256:new localhost/splitinference/segment:bbb\n" + (
            "sha256:new localhost/splitinference/segment:dev\nsha256:node localhost/splitinference/node:v1\n"
            "sha256:tests localhost/splitinference/segment:test\n"
        )


def test_yesterdays_images_and_their_layers_go_and_todays_stay(tmp_path: Path):
    settings = Settings(cache=tmp_path)
    settings.blobs.mkdir()
    for identity, layer in (("old", "1" * 64), ("new", "2" * 64)):
        blobs = {
            "manifest": ["m", f"sha256:{identity}-m", 1],
            "config": ["c", f"sha256:{identity}-c", 1],
            "layers": [["l", f"sha256:{layer}", 1]],
        }
        (settings.blobs / f"{identity}.image.json").write_text(json.dumps(blobs))
        for name in (f"{identity}-m", f"{identity}-c", layer):
            (settings.blobs / name).touch()
    removed = tmp_path / "removed"
    prune(settings, Listing(str(removed), None, private=True), ("localhost/splitinference/node:v1",))
    assert removed.read_text().split() == ["localhost/splitinference/segment:aaa"]
    assert {path.name for path in settings.blobs.iterdir()} == {"new.image.json", "new-m", "new-c", "2" * 64}


def test_what_comes_after_the_images_own_stage_does_not_change_it(tree: Path):
    dockerfile = tree / "Dockerfile"
    dockerfile.write_text("FROM x AS image\nCOPY pyproject.toml /\nFROM image AS test\nCOPY images/x/lib /tests\n")
    before = content_key(dockerfile, tree, "sha256:1", "image")
    (tree / "images/x/lib/a.py").write_text("changed")
    assert content_key(dockerfile, tree, "sha256:1", "image") == before
    (tree / "pyproject.toml").write_text("changed")
    assert content_key(dockerfile, tree, "sha256:1", "image") != before
