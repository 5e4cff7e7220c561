"""Where programs and images come from, and under which names they are cached."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import settings as versions
from e2e.cluster.offline import gobuild
from e2e.cluster.offline.base import node_base_tag
from e2e.cluster.offline.nodeimage import tag
from e2e.cluster.settings import Settings
from e2e.cluster.supplies.supply import PUBLIC, choose, offline
from e2e.cluster.supplies.tools import HELM, KIND, KUBECTL, first_version


def test_a_modules_key_changes_with_version_flags_and_go_mod(tmp_path: Path):
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "go.mod").write_text("module x\n")
    module = gobuild.Module("x", "v1", (".",), ("x",), folder)
    keys = {module.key, replace(module, version="v2").key, replace(module, ldflags="").key}
    (folder / "go.mod").write_text("module y\n")
    assert len(keys | {module.key}) == 4


def test_a_module_is_built_when_all_its_programs_are_there(tmp_path: Path):
    module = gobuild.Module("x", "v1", ("a", "b"), ("a", "b"))
    module.bin(tmp_path).mkdir()
    (module.bin(tmp_path) / "a").touch()
    assert not module.built(tmp_path)
    (module.bin(tmp_path) / "b").touch()
    assert module.built(tmp_path)


def test_what_is_built_is_not_fetched_and_what_is_fetched_is_not_yet_built(tmp_path: Path):
    go = tmp_path / "go"
    go.write_text(
        '#!/bin/sh\n[ "$1" = env ] && echo "{\\"GOCACHE\\": \\"/\\", \\"GOMODCACHE\\": \\"/\\"}" || echo "$*" >> "$(dirname "$0")/asked"\n'
    )
    go.chmod(0o755)
    builder = gobuild.Builder(Settings(cache=tmp_path), str(go), threading.Lock())
    module, other = gobuild.Module("x", "v1", ("host/x",), ("x",)), gobuild.Module("y", "v1", (".",), ("y",), gobuild.PAUSE.folder)
    builder.fetch(module)
    builder.fetch(other)
    assert (tmp_path / "asked").read_text().splitlines() == ["install -n host/x@v1", "list -deps ."]
    assert not module.built(tmp_path)
    for each in (module, other):
        each.bin(tmp_path).mkdir()
        (each.bin(tmp_path) / each.name).touch()
        builder.fetch(each)
    assert len((tmp_path / "asked").read_text().splitlines()) == 2


def test_kubernetes_says_its_version_in_both_packages():
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        assert f"-X {package}.gitVersion={versions.KUBERNETES}" in gobuild.KUBERNETES.ldflags


def test_helm_knows_which_kubernetes_it_is_built_with():
    assert "-X helm.sh/helm/v4/pkg/chart/common.k8sVersionMinor=34 " in gobuild.HELM.ldflags
    assert gobuild.HELM.folder == gobuild.KUBERNETES.folder, "what they share is compiled once"


@pytest.mark.parametrize("module", [module for module in (*gobuild.NODE, gobuild.HELM) if module.folder], ids=lambda module: module.name)
def test_go_mod_asks_for_the_version_that_the_module_is_named_by(module: gobuild.Module):
    assert module.folder is not None
    text = (module.folder / "go.mod").read_text()
    assert module.name == "pause" or f"{module.version}\n" in text or f"{module.version} " in text


def test_images_are_named_by_what_they_are_made_from():
    assert versions.KUBERNETES in tag()
    assert versions.KIND in node_base_tag()


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("kind v0.33.0 go1.26.8 linux/amd64", (0, 33)),
        ("Client Version: v1.34.4\nKustomize Version: v5.7.1", (1, 34)),
        ("v4.3.1+g1", (4, 3)),
        ("?", None),
    ],
)
def test_versions_as_programs_say_them(said: str, version: tuple[int, int] | None):
    assert first_version(said) == version


def test_a_kubectl_may_be_one_minor_away():
    assert [KUBECTL.suits((1, minor)) for minor in (32, 33, 34, 35, 36)] == [False, True, True, True, False]
    assert HELM.suits((4, 0))
    assert not HELM.suits((2, 17))
    assert not KIND.suits((0, 11))


@pytest.mark.parametrize(("images", "supply"), [("public", PUBLIC), ("offline", offline())])
def test_the_settings_can_decide_where_images_come_from(tmp_path: Path, images: str, supply: object):
    assert choose(Settings(cache=tmp_path, images=images), None) == supply
