"""Catalogue files beside the built-in catalogue: they add and replace, and a wrong one is named with its place."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.catalogue import MOST_BYTES, MOST_FILES, CatalogueError, built_in, extended
from splitinference.controller.cluster_state.figures.node_figures import capacity_of
from splitinference.settings import Settings

NOMINAL = {"flops_per_s": 1e14, "memory_bandwidth_bytes_per_s": 5e11, "source": "its maker"}
PHASE = {"compute": 0.5, "bandwidth": 0.8, "attention": 0.3, "launch_ms": 0.1, "spread": 0.1}


def entry(processor: str, engine: str = "torch", compute: float = 0.5) -> dict[str, object]:
    phase = {**PHASE, "compute": compute}
    return {"processor": processor, "engine": engine, "rows": 4, "efficiency": {"prefill": phase, "decode": phase, "source": "mine"}}


def written(folder: Path, name: str = "mine.json", **content: object) -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_no_folder_is_the_built_in_catalogue() -> None:
    assert extended("") == built_in()


def test_a_file_adds_a_product_and_its_entry(tmp_path: Path) -> None:
    found = extended(written(tmp_path, processors={"Mine-1": NOMINAL}, entries=[entry("Mine-1")])).prior("Mine-1", "torch")
    assert found is not None
    assert found[0].flops_per_s == 1e14
    assert found[1].prefill.compute == 0.5
    assert built_in().prior("Mine-1", "torch") is None


def test_an_entry_for_a_known_product_needs_no_product_and_may_use_its_alias(tmp_path: Path) -> None:
    alias = built_in().processors["NVIDIA-H200"].aliases[0]
    found = extended(written(tmp_path, entries=[entry(alias, compute=0.61)]))
    prior = found.prior("NVIDIA-H200", "torch")
    assert prior is not None
    assert prior[1].prefill.compute == 0.61


def test_the_later_file_wins(tmp_path: Path) -> None:
    written(tmp_path, "1.json", processors={"Mine-1": NOMINAL}, entries=[entry("Mine-1", compute=0.2)])
    prior = extended(written(tmp_path, "2.json", entries=[entry("Mine-1", compute=0.7)])).prior("Mine-1", "torch")
    assert prior is not None
    assert prior[1].prefill.compute == 0.7


def test_what_a_configmap_mounts_beside_its_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "..data").mkdir()
    (tmp_path / ".hidden.json").write_text("{")
    (tmp_path / "README.txt").write_text("no catalogue")
    assert extended(str(tmp_path)) == built_in()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "mine.json"),
        ("[]", "mine.json"),
        (json.dumps({"entries": [entry("Nobody-Knows-It")]}), "no processor has this name"),
        (json.dumps({"processors": {"X": {**NOMINAL, "flops_per_s": 0}}}), "processors.X.flops_per_s"),
        (json.dumps({"processors": {"X": {**NOMINAL, "aliases": ["NVIDIA-H200"]}}}), "named by two processors"),
        (json.dumps({"entries": [entry("NVIDIA-H200"), entry("NVIDIA-H200")]}), "occurs twice"),
        (json.dumps({"procesors": {}}), "procesors"),
        (" " * (MOST_BYTES + 1), "more than 1 MiB"),
    ],
    ids=["broken", "list", "unknown", "zero", "alias", "twice", "typo", "large"],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "mine.json").write_text(text)
    with pytest.raises(CatalogueError, match=r"mine\.json") as raised:
        extended(str(tmp_path))
    assert said in str(raised.value)


def test_a_folder_that_is_missing_or_too_full_is_said(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="No such file"):
        extended(str(tmp_path / "none"))
    for number in range(MOST_FILES + 1):
        (tmp_path / f"{number}.json").write_text("{}")
    with pytest.raises(CatalogueError, match="at most 64"):
        extended(str(tmp_path))


def test_the_operator_plans_a_node_with_it(tmp_path: Path) -> None:
    folder = written(tmp_path, processors={"Mine-1": NOMINAL}, entries=[entry("Mine-1")])
    node = {
        "metadata": {"name": "a", "labels": {"nvidia.com/gpu.product": "Mine-1", "splitinference.dev/processor": "gpu"}},
        "status": {"allocatable": {"nvidia.com/gpu": "1"}},
    }
    known = capacity_of(node, None, None, 4.0, Settings(catalogue_folder=folder))
    assert (known.gflops, known.basis) == (1e5, "catalogue")
    assert capacity_of(node, None, None, 4.0, Settings()).basis == "assumed"


def test_the_operator_does_not_start_with_a_wrong_file(tmp_path: Path) -> None:
    folder = written(tmp_path, procesors={})
    ended = subprocess.run(
        [sys.executable, "-m", "splitinference"],
        env={**os.environ, "SPLITINFERENCE_CATALOGUE_FOLDER": folder},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 2
    assert "SPLITINFERENCE_CATALOGUE_FOLDER" in ended.stderr
    assert "mine.json: procesors" in ended.stderr
    assert "Traceback" not in ended.stderr
