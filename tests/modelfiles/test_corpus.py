"""The planner and the segments give the same answer for every model of the corpus, with the same reason."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from splitinference.controller.manifests import profile_pod
from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import Profile
from splitinference.inpod import script
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables
from splitinference_modelfiles.stored.headers import ModelRefusedError
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError
from tests.modelfiles import tables
from tests.modelfiles.case import Case
from tests.modelfiles.corpus import CORPUS, SERVED


def planned(folder: Path) -> Profile | str:
    """As the reading pod and the operator do it: the profile, or the reason why there is none."""
    command = [sys.executable, "-I", "-c", script("read_model"), str(folder), "the model"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    packed = profile_pod.from_log(done.stdout)
    if packed is None:
        return done.stderr.strip()
    kept = profile_pod.unpack(packed)
    assert kept is not None
    try:
        return profile_from_model(kept.config, kept.tensors, "bfloat16", files=kept.files)
    except ModelRefusedError as error:
        return str(error)


def by_plan_command(folder: Path) -> Profile | str:
    """As `splitinference plan --model` reads it."""
    try:
        config, (_, table) = read_json(str(folder), CONFIG), tensor_tables(str(folder))
        return profile_from_model(config, table, "bfloat16", files=file_names(str(folder)))
    except ModelRefusedError as error:
        return str(error)


def loaded(folder: Path) -> str:
    """The segment's reason to refuse the model; nothing where it would load it."""
    try:
        accepted(folder)
    except UnsupportedModelError as error:
        return str(error)
    return ""


def written(case: Case, folder: Path) -> Path:
    return tables.model(folder, case.config, case.shapes, files=2 if len(case.shapes) > 100 else 1)


def _named(name: str) -> Case:
    return next(case for case in CORPUS if case.name == name)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_planner_and_segment_agree(case: Case, tmp_path: Path) -> None:
    folder = written(case, tmp_path / "m")
    answer = by_plan_command(folder)
    refused = answer if isinstance(answer, str) else ""
    assert loaded(folder) == refused
    assert case.refused in refused
    assert bool(case.refused) == bool(refused), refused


@pytest.mark.parametrize(
    "case",
    [CORPUS[0], CORPUS[15], CORPUS[29], CORPUS[32], *CORPUS[-2:], _named("Qwen3-30B-A3B"), _named("Gemma-3-1B")],
    ids=lambda case: case.name,
)
def test_the_reading_pod_gives_what_the_plan_command_gives(case: Case, tmp_path: Path) -> None:
    folder = written(case, tmp_path / "m")
    assert planned(folder) == by_plan_command(folder)


@pytest.mark.parametrize("case", [case for case in SERVED if case.numbers], ids=lambda case: case.name)
def test_a_profile_counts_the_published_parameters(case: Case, tmp_path: Path) -> None:
    profile = by_plan_command(written(case, tmp_path / "m"))
    assert isinstance(profile, Profile)
    assert profile.weight_bytes(0, len(profile.layers)) == 2 * (case.numbers or 0)


@pytest.mark.parametrize("case", [case for case in SERVED if case.positions], ids=lambda case: case.name)
def test_positions_are_known(case: Case, tmp_path: Path) -> None:
    folder = written(case, tmp_path / "m")
    assert accepted(folder)[1].positions == case.positions


def test_a_segment_accepts_a_model_of_which_it_has_only_its_own_files(tmp_path: Path) -> None:
    case = SERVED[0]
    folder = tables.model(tmp_path / "m", case.config, case.shapes, files=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert loaded(folder) == ""
    assert "names model-00002-of-00003.safetensors, which the model does not have" in str(planned(folder))


def test_the_corpus_is_wide() -> None:
    assert len({json.dumps(case.config, sort_keys=True) for case in SERVED}) >= 60
    assert len({json.dumps(case.config, sort_keys=True) for case in CORPUS}) >= 120
    assert len({case.config["model_type"] for case in CORPUS}) >= 35
