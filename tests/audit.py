"""Known vulnerabilities in what we depend on: `python -m tests.audit python` or `go`. Exit status 1 where one is found that is not allowed.

pip-audit looks at every file of pinned requirements, govulncheck at every Go module. .github/vulnerabilities.toml lists what is allowed.
"""
# ruff: noqa: T201

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
ALLOWED = ROOT / ".github" / "vulnerabilities.toml"
LONGEST = timedelta(days=90)
GOVULNCHECK = "golang.org/x/vuln/cmd/govulncheck@v1.1.4"


@dataclass(frozen=True)
class Found:
    """One known vulnerability: its names in several databases, the package, and where we depend on it."""

    ids: frozenset[str]
    package: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.package}: {', '.join(sorted(self.ids))}"


@dataclass(frozen=True)
class Allowed:
    """One that is let pass until a day."""

    id: str
    package: str
    until: date
    reason: str


def allowed(text: str, today: date) -> list[Allowed]:
    """The list. ValueError where an entry has no reason, or a day that is too far away; what has ended is left out."""
    entries = []
    for given in tomllib.loads(text).get("allowed", []):
        entry = Allowed(str(given["id"]), str(given["package"]), given["until"], str(given.get("reason", "")).strip())
        if not entry.reason:
            raise ValueError(f"{entry.id} has no reason")
        if entry.until > today + LONGEST:
            raise ValueError(f"{entry.id} is allowed until {entry.until}, more than {LONGEST.days} days from now")
        if entry.until >= today:
            entries.append(entry)
    return entries


def not_allowed(found: Iterable[Found], passes: Sequence[Allowed]) -> list[Found]:
    """What is left. An entry counts for its package alone."""
    return [one for one in found if not any(entry.id in one.ids and entry.package == one.package for entry in passes)]


def of_pip_audit(report: Mapping[str, Any], where: str) -> list[Found]:
    """From pip-audit's JSON."""
    return [
        Found(frozenset([one["id"], *one.get("aliases", [])]), package["name"], where)
        for package in report["dependencies"]
        for one in package.get("vulns", [])
    ]


def of_govulncheck(stream: str, where: str) -> list[Found]:
    """From govulncheck's stream of JSON objects: only what our programs call, as those findings have a function in their first frame."""
    decoder, at, names, found = json.JSONDecoder(), 0, dict[str, list[str]](), dict[str, Found]()
    while at < len(stream.rstrip()):
        message, end = decoder.raw_decode(stream, at)
        at = end + (len(stream[end:]) - len(stream[end:].lstrip()))
        if "osv" in message:
            names[message["osv"]["id"]] = message["osv"].get("aliases", [])
        elif (finding := message.get("finding")) and finding["trace"][0].get("function"):
            osv = finding["osv"]
            found[osv] = Found(frozenset([osv, *names.get(osv, [])]), finding["trace"][0]["module"], where)
    return list(found.values())


def python() -> list[Found]:
    """Every requirements*.txt of the repository."""
    found = []
    for file in sorted([*ROOT.glob("requirements*.txt"), *ROOT.glob("images/*/requirements*.txt")]):
        command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off", "--disable-pip", "--no-deps"]
        done = subprocess.run([*command, "--require-hashes", "-r", str(file)], capture_output=True, text=True, check=False)
        if done.returncode not in (0, 1) or not done.stdout:
            raise SystemExit(f"pip-audit cannot read {file}: {done.stderr[-2000:]}")
        found += of_pip_audit(json.loads(done.stdout), str(file.relative_to(ROOT)))
    return found


def go() -> list[Found]:
    """Every Go module of the repository."""
    found = []
    for module in sorted(ROOT.glob("[et]*/**/go.mod")):
        command = ["go", "run", GOVULNCHECK, "-format", "json", "./..."]
        done = subprocess.run(command, cwd=module.parent, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"govulncheck cannot read {module}: {done.stderr[-2000:]}")
        found += of_govulncheck(done.stdout, str(module.parent.relative_to(ROOT)))
    return found


def main(what: str) -> int:
    """Look, and say what was found."""
    passes = allowed(ALLOWED.read_text(), date.today())  # noqa: DTZ011 - days, not moments
    found = {"python": python, "go": go}[what]()
    left = not_allowed(found, passes)
    for one in left:
        print(one, file=sys.stderr)
    print(f"{len(found)} known vulnerabilities, {len(found) - len(left)} of them allowed")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
