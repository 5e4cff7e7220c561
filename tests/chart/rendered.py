"""The chart as helm renders it, for tests: whole, one object of it, its settings."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import helm

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "splitinference"
PREFIX = "SPLITINFERENCE_"
PROBE = "probe.enabled=true"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm(), *arguments], capture_output=True, text=True, check=False, timeout=60)


@cache
def render(*sets: str) -> tuple[dict[str, Any], ...]:
    words = [word for value in sets for word in ("--set", value)]
    done = run("template", "si", str(CHART), "--namespace", "ops", *words)
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.safe_load_all(done.stdout) if found)


def only(kind: str, *sets: str) -> dict[str, Any]:
    (found,) = [obj for obj in render(*sets) if obj["kind"] == kind]
    return found


def container(*sets: str) -> dict[str, Any]:
    return only("Deployment", *sets)["spec"]["template"]["spec"]["containers"][0]


def settings(*sets: str) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container(*sets)["env"] if "value" in entry}


def values(tmp_path: Path, text: str) -> tuple[dict[str, Any], ...]:
    """The chart with values from a file, as most people give them: YAML decides what is a number."""
    file = tmp_path / "values.yaml"
    file.write_text(text)
    done = run("template", "si", str(CHART), "--namespace", "ops", "--values", str(file))
    assert done.returncode == 0, done.stderr
    return tuple(found for found in yaml.safe_load_all(done.stdout) if found)


def environment(objects: tuple[dict[str, Any], ...]) -> dict[str, str]:
    (deployment,) = [obj for obj in objects if obj["kind"] == "Deployment"]
    return {entry["name"]: entry.get("value", "") for entry in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}


def allowed(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(group, res, verb) for rule in rules for group in rule["apiGroups"] for res in rule["resources"] for verb in rule["verbs"]}


def policy(name: str, *sets: str) -> dict[str, Any]:
    (found,) = [obj for obj in render(*sets) if obj["kind"] == "NetworkPolicy" and obj["metadata"]["name"].endswith(name)]
    return found


def umbrella(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """The chart below another, with these values of the other."""
    (folder / "charts").mkdir()
    assert run("package", str(CHART), "--destination", str(folder / "charts")).returncode == 0
    dependency = {"name": "splitinference", "version": "*", "condition": "splitinference.enabled", "repository": ""}
    about = {"apiVersion": "v2", "name": "umbrella", "version": "1.0.0", "dependencies": [dependency]}
    (folder / "Chart.yaml").write_text(yaml.safe_dump(about))
    (folder / "values.yaml").write_text(text)
    return run("template", "up", str(folder), "--namespace", "ops")
