"""What we build from is named by content: Actions by commit, base images by digest, packages by hash. And the tools that check parts."""

import re
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import audit, parts_list, release_facts
from tests.test_repository import ROOT, tracked

WORKFLOWS = tracked(".github/workflows/*.yml")
REQUIREMENTS = tracked("requirements*.txt", "images/*/requirements*.txt")
DOCKERFILES = tracked("images/*/Dockerfile*")
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}$")
WITHOUT_A_DIGEST = {"nvcr.io/nvidia/tritonserver:26.10-py3", "scratch"}
"""`scratch` is nothing. The other's registry could not be asked where this was written. Pin it where it is built:
--build-arg BASE=…@sha256:…"""
BUILT_HERE = {"splitinference/segment:dev", "splitinference/gateway:dev"}


def uses(part: Any) -> list[str]:
    """All values of `uses` in a workflow."""
    if isinstance(part, dict):
        return [*([part["uses"]] if isinstance(part.get("uses"), str) else []), *(one for value in part.values() for one in uses(value))]
    return [one for value in part for one in uses(value)] if isinstance(part, list) else []


def read(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text())
    return found


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_actions_are_named_by_commit_and_say_their_version(workflow: Path):
    found = uses(read(workflow))
    assert found
    assert [one for one in found if not re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}", one)] == []
    lines = [line for line in workflow.read_text().splitlines() if "uses:" in line]
    assert [line for line in lines if not re.search(r"@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line)] == []


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_workflows_may_only_read_unless_a_job_says_more_and_leave_no_token_behind(workflow: Path):
    content = read(workflow)
    assert content["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in workflow.read_text(), "it would run a stranger's change with our rights"
    for job in content["jobs"].values():
        for step in job["steps"]:
            if "actions/checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda p: p.name)
def test_no_text_of_a_stranger_is_pasted_into_a_shell(workflow: Path):
    """Names of branches and titles of pull requests are chosen by anybody. They reach a script as variables, never as text."""
    scripts = [step["run"] for job in read(workflow)["jobs"].values() for step in job["steps"] if "run" in step]
    assert [one for script in scripts for one in re.findall(r"\$\{\{\s*(.*?)\s*\}\}", script) if not one.startswith("matrix.")] == []


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda p: f"{p.parent.name}-{p.name}")
def test_base_images_have_a_digest(dockerfile: Path):
    text = dockerfile.read_text()
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    stages = set(re.findall(r"^FROM .* AS (\S+)$", text, re.MULTILINE))
    bases = [re.sub(r"\$\{(\w+)\}", lambda m: arguments[m.group(1)], base) for base in re.findall(r"^FROM (\S+)", text, re.MULTILINE)]
    known = stages | WITHOUT_A_DIGEST | BUILT_HERE
    assert [base for base in bases if base not in known and not DIGEST.search(base)] == []


@pytest.mark.parametrize("file", REQUIREMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_requirement_has_one_version_and_hashes(file: Path):
    joined = re.sub(r"\\\n", " ", file.read_text())
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    assert lines
    pattern = r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+( ; [^\\]*?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*"
    assert [line.split()[0] for line in lines if not re.fullmatch(pattern, line)] == []


@pytest.mark.parametrize("file", tracked("images/**/*.in", "requirements*.in"), ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_asked_for_is_pinned(file: Path):
    asked = {re.split(r"[\[<>=]", line)[0].lower().replace("_", "-") for line in file.read_text().splitlines() if line and line[0] != "#"}
    pinned = set(re.findall(r"^([\w.-]+)(?:\[[\w,-]+\])?==", file.with_suffix(".txt").read_text(), re.MULTILINE))
    assert asked - pinned == set(), "make requirements"


@pytest.mark.parametrize("file", [*DOCKERFILES, ROOT / "install.sh", ROOT / "Makefile"], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_whatever_is_installed_is_checked_by_hash(file: Path):
    found = re.findall(r"(pip (?:install|download)\s[^;&]*?)(?:;|&&|$|>)", file.read_text().replace("\\\n", " "), re.MULTILINE)
    assert [line for line in found if "--require-hashes" not in line and not line.rstrip().endswith("--no-deps -e .")] == []


# --- known vulnerabilities ------------------------------------------------------------------------------------------------------------

TODAY = date(2026, 11, 30)
ONE = audit.Found(frozenset({"GHSA-1", "CVE-1"}), "example", "requirements.txt")


def entry(until: date = TODAY + timedelta(days=5), reason: str = "never called", package: str = "example", name: str = "CVE-1") -> str:
    return f'[[allowed]]\nid = "{name}"\npackage = "{package}"\nuntil = {until}\nreason = "{reason}"\n'


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (entry(), []),
        (entry(name="GHSA-1"), []),
        (entry(until=TODAY), []),
        (entry(until=TODAY - timedelta(days=1)), [ONE]),
        (entry(package="other"), [ONE]),
        (entry(name="CVE-2"), [ONE]),
        ("", [ONE]),
    ],
)
def test_a_vulnerability_passes_only_while_it_is_allowed(text: str, left: list[audit.Found]):
    assert audit.not_allowed([ONE], audit.allowed(text, TODAY)) == left


@pytest.mark.parametrize(
    ("text", "said"), [(entry(reason=" "), "CVE-1 has no reason"), (entry(until=TODAY + timedelta(days=91)), "more than 90 days")]
)
def test_an_allowance_needs_a_reason_and_an_end(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        audit.allowed(text, TODAY)


def test_our_own_list_can_be_read():
    audit.allowed(audit.ALLOWED.read_text(), date.today())  # noqa: DTZ011


def test_pip_audits_report_is_understood():
    report = {
        "dependencies": [
            {"name": "fine", "version": "1", "vulns": []},
            {"name": "example", "version": "1", "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": []}]},
            {"name": "skipped", "skip_reason": "not on PyPI"},
        ]
    }
    assert audit.of_pip_audit(report, "requirements.txt") == [ONE]


def test_of_govulnchecks_report_only_what_is_called_counts():
    stream = """{"config": {"protocol_version": "v1.0.0"}}
{
  "osv": {"id": "GO-1", "aliases": ["CVE-7"]}
}
{"osv": {"id": "GO-2", "aliases": []}}
{"finding": {"osv": "GO-1", "trace": [{"module": "example.org/m", "package": "p", "function": "F"}]}}
{"finding": {"osv": "GO-1", "trace": [{"module": "example.org/m"}]}}
{"finding": {"osv": "GO-2", "trace": [{"module": "example.org/m"}]}}
"""
    assert audit.of_govulncheck(stream, "programs") == [audit.Found(frozenset({"GO-1", "CVE-7"}), "example.org/m", "programs")]


# --- releases -------------------------------------------------------------------------------------------------------------------------


def test_a_tag_must_be_the_version_of_package_and_chart(capsys: pytest.CaptureFixture[str]):
    found = set(release_facts.versions().values())
    assert len(found) == 1
    assert release_facts.main(f"v{found.pop()}") == 0
    assert release_facts.main("v99.0.0") == 1
    assert "the tag is v99.0.0, but " in capsys.readouterr().err


def test_every_image_of_a_release_has_a_parts_list():
    release = read(ROOT / ".github/workflows/release.yml")
    images = {one["image"] for one in release["jobs"]["image"]["strategy"]["matrix"]["include"]}
    assert images == set(parts_list.REQUIREMENTS)
    listed = {name for names in parts_list.REQUIREMENTS.values() for name in names}
    installed = set(re.findall(r"images/(\w+/requirements[\w-]*\.txt)", "".join(f.read_text() for f in DOCKERFILES)))
    left_out = ("-test.txt", "-gpu.txt", "-build.txt")  # in no image of a release
    assert {name for name in installed if not name.endswith(left_out)} == listed
    for one in release["jobs"]["image"]["strategy"]["matrix"]["include"]:
        dockerfile = (ROOT / one["file"]).read_text()
        own = set(re.findall(r"images/(\w+/requirements[\w-]*\.txt)", dockerfile))
        assert {name for name in own if not name.endswith(left_out)} == set(parts_list.REQUIREMENTS[one["image"]])
