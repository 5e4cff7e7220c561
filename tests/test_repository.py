"""Facts about the repository itself that a change elsewhere can break."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

import splitinference
from splitinference.controller.api.spec import Resource, read_resource

ROOT = Path(__file__).parent.parent


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z", "--", *patterns], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_the_operator_folder_is_no_package():
    """`operator` is a module of the standard library: an __init__.py here breaks Python in the repository root."""
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_crd_is_kept_once_and_copied_into_the_chart():
    """Helm packages only what is in the chart's folder, and some checkouts drop symbolic links. `make crd` copies it."""
    crds = [p for p in tracked("*.yaml", "*.yml") if "kind: CustomResourceDefinition" in p.read_text()]
    assert [str(p.relative_to(ROOT).parent) for p in crds] == ["charts/splitinference/files", "crds"]
    assert len({p.read_bytes() for p in crds}) == 1, "make crd"


def test_chart_version_is_the_package_version():
    chart = yaml.safe_load((ROOT / "charts/splitinference/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (splitinference.__version__, splitinference.__version__)


@pytest.mark.parametrize("page", sorted(tracked("*.md")), ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path):
    targets = re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_paths_and_names_that_say_where_code_goes_are_there(page: str):
    """A path in backticks, from the root or from the operator's package; and a name in backticks that stands before a linked file."""
    text = (ROOT / page).read_text("utf-8")
    folders = "operator|images|core|controller|adapters|settings|tests|charts|config|crds|docs"
    paths = re.findall(rf"`((?:{folders})/[\w./-]+)`", text)
    assert [path for path in paths if not ((ROOT / path).exists() or (ROOT / "operator/splitinference" / path).exists())] == []
    named = re.findall(r"`(\w+)` in \[[^\]]+\]\(([^)]+\.py)\)", text) + re.findall(r"\[`(\w+)`\]\(([^)]+\.py)\)", text)
    files = {name: (ROOT / page).parent / file for name, file in named}
    assert [name for name, file in files.items() if name not in file.read_text("utf-8") and name != file.stem] == []


def test_the_changelog_says_nothing_twice():
    """Merges of branches leave the same line behind twice."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    entries = [line for line in text.splitlines() if line.startswith("- ")]
    assert [entry for entry, times in Counter(entries).items() if times > 1] == []
    starts = Counter(match[1] for entry in entries if (match := re.match(r"- (`spec\.[\w.]+`):", entry)))
    assert [start for start, times in starts.items() if times > 1] == [], "one entry for a field"


def test_decisions_are_numbered_without_a_double():
    numbers = [p.name[:4] for p in tracked("docs/decisions/0*.md")]
    assert len(numbers) == len(set(numbers))


def test_the_readme_shows_a_part_of_the_demos_sample_that_is_taken_as_it_is():
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown, sample = yaml.safe_load(block), yaml.safe_load((ROOT / "config/samples/splitinference.yaml").read_text())
    assert isinstance(read_resource(shown), Resource)
    assert within(shown, sample)


def within(part: object, whole: object) -> bool:
    """Whether each field of the part has the same value in the whole."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and within(value, whole[key]) for key, value in part.items())
    return part == whole
