"""The command line: what it accepts, and what it says when there is no cluster."""

import json
from pathlib import Path

import pytest

from e2e.cluster.__main__ import main, parser
from e2e.cluster.cluster import Cluster, NotUpError
from e2e.cluster.current import CurrentCluster
from e2e.cluster.faults import NotPossibleError
from e2e.cluster.settings import Settings, default_cache


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it, and no engine to be found."""
    monkeypatch.setenv("SPLITINFERENCE_CACHE", str(tmp_path))
    monkeypatch.setenv("SPLITINFERENCE_ENGINE", "private")
    monkeypatch.setenv("SPLITINFERENCE_IMAGES", "offline")
    return tmp_path


def test_the_name_may_stand_before_or_after_the_verb():
    assert parser().parse_args(["--name", "x", "down"]).name == "x"
    assert parser().parse_args(["down", "--name", "x"]).name == "x"
    assert parser().parse_args(["down"]).name == "splitinference"


def test_status_of_nothing(nothing: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"name": "splitinference", "running": False, "engine": None, "nodes": []}


@pytest.mark.parametrize("words", [["kubeconfig"], ["stop", "splitinference-worker"], ["link", "splitinference-worker", "--mbit", "5"]])
def test_without_a_cluster_one_sentence_says_how_to_start_it(nothing: Path, capsys: pytest.CaptureFixture[str], words: list[str]):
    assert main(words) == 1
    assert capsys.readouterr().err.strip() == "The cluster is not running: start it with `python -m e2e.cluster up`."


def test_a_link_without_a_limit_is_refused(nothing: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["link", "splitinference-worker"]) == 1
    assert "--mbit, --latency-ms or --clear" in capsys.readouterr().err


def test_a_cluster_has_at_least_one_worker(nothing: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["up", "--workers", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_only_workers_change_their_size(nothing: Path):
    with pytest.raises(ValueError, match="splitinference-worker4"):
        Cluster(Settings()).size("splitinference-control-plane")


def test_tools_that_are_not_there_yet_are_said_to_come_with_up(nothing: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(nothing))
    with pytest.raises(NotUpError, match="kubectl is not there yet"):
        Cluster(Settings()).kubectl("version")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("SPLITINFERENCE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "splitinference"
    monkeypatch.setenv("SPLITINFERENCE_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


def test_anothers_cluster_is_not_changed():
    current = CurrentCluster("prod", image_prefix="registry.example/si", image_tag="1.0")
    assert current.image("segment") == "registry.example/si/segment:1.0"
    with pytest.raises(NotPossibleError, match="`stop` needs the kind cluster"):
        current.stop("node-1")


def test_what_the_demo_lacks_in_a_cluster_that_is_not_ours_is_said_first():
    without = CurrentCluster("prod", prometheus_url="")
    assert any("SPLITINFERENCE_PROMETHEUS_URL" in sentence for sentence in without.missing())
    there = CurrentCluster("prod", prometheus_url="http://prometheus.example:9090")
    assert not any("SPLITINFERENCE_PROMETHEUS_URL" in sentence for sentence in there.missing())


def test_images_of_a_cluster_that_is_not_ours_are_pulled_by_name():
    current = CurrentCluster("prod", image_prefix="registry.example/si", image_tag="1.0")
    assert current.load_images(("gateway",)) == {"gateway": "registry.example/si/gateway:1.0"}
