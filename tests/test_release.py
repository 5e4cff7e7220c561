"""What a release is made of, as far as it can be judged without making one (`make release-dry-run` makes all but images)."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import release
from tests.test_repository import ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())
JOBS: dict[str, Any] = WORKFLOW["jobs"]


def scripts(job: str) -> str:
    return "\n".join(step.get("run", "") for step in JOBS[job]["steps"])


def test_notes_are_those_of_the_version_or_of_what_is_not_released_yet():
    changelog = "# Changelog\n\n## Unreleased\n\n- new\n\n## 0.1.0 - 2026-11-30\n\n### Added\n\n- first\n\n## [0.0.1]\n\n- zero\n"
    assert release.notes(changelog, "0.1.0").startswith("### Added\n\n- first\n\n## Check what you got")
    assert release.notes(changelog, "0.0.1").startswith("- zero")
    assert release.notes(changelog, "9.9.9").startswith("- new")
    with pytest.raises(release.ReleaseError, match=r"says nothing of 1\.0\.0"):
        release.notes("# Changelog\n\n## Unreleased\n\n## 1.0.0\n", "1.0.0")


def test_our_own_changelog_has_notes():
    assert "### Added" in release.notes((ROOT / "CHANGELOG.md").read_text(), release.version())


def test_sums_are_those_that_sha256sum_reads(tmp_path: Path):
    (tmp_path / "a.tgz").write_bytes(b"abc")
    (tmp_path / release.SUMS).write_text("old")
    (tmp_path / "folder").mkdir()
    assert release.sums(tmp_path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.tgz\n"


def test_a_tool_that_is_missing_is_named():
    with pytest.raises(release.ReleaseError, match="no-such-tool is missing"):
        release.tool("no-such-tool")


def test_every_image_is_built_from_a_file_and_a_stage_that_are_there():
    for one in JOBS["image"]["strategy"]["matrix"]["include"]:
        text = (ROOT / one["file"]).read_text()
        assert f" AS {one['target']}\n" in text
        assert one["runner"].endswith("-arm") is (one["arch"] == "arm64")


def test_the_control_plane_runs_on_both_architectures_and_the_chart_promises_no_more():
    built: dict[str, set[str]] = {}
    for one in JOBS["image"]["strategy"]["matrix"]["include"]:
        built.setdefault(one["image"], set()).add(one["arch"])
    assert built["operator"] == built["gateway"] == {"amd64", "arm64"}
    values = yaml.safe_load((ROOT / "charts/splitinference/values.yaml").read_text())
    assert set(values["images"]["architectures"]) <= set.intersection(*built.values()), "nodes that cannot run a segment are not used"
    assert set(JOBS["index"]["strategy"]["matrix"]["image"]) == set(built)


def test_what_is_published_was_made_and_checked_first():
    def before(job: str) -> set[str]:
        needs = JOBS[job].get("needs", [])
        direct = {needs} if isinstance(needs, str) else set(needs)
        return direct | {further for one in direct for further in before(one)}

    for job in ("image", "index", "chart", "package", "notes"):
        assert "artifacts" in before(job)
    assert before("notes") == set(JOBS) - {"notes"}
    assert "tests.release_facts" in scripts("artifacts")
    assert "tests.release build/release" in scripts("artifacts")


def test_only_the_jobs_that_publish_may_write():
    writes = {job: {name for name, right in content.get("permissions", {}).items() if right == "write"} for job, content in JOBS.items()}
    assert writes == {
        "artifacts": set(),
        "image": {"packages"},
        "index": {"packages", "id-token", "attestations"},
        "chart": {"packages", "id-token", "attestations"},
        "package": {"id-token"},
        "plugin": {"id-token", "attestations"},
        "notes": {"contents"},
    }


def test_images_and_the_chart_are_attested_by_digest():
    for job, subjects in (("index", 2), ("chart", 1)):
        attested = [step["with"] for step in JOBS[job]["steps"] if "attest" in step.get("uses", "")]
        assert len(attested) == subjects
        assert all(found["subject-digest"].startswith("${{ steps.") and found["push-to-registry"] is True for found in attested)
