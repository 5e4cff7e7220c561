"""What a release consists of, besides its images: `python -m tests.release FOLDER` makes and checks it; `make release-dry-run` calls it.

In FOLDER: wheel and sdist for PyPI, the chart's archive for an OCI registry, the parts list of each image, notes, and SHA256SUMS over all.
The workflow `release` uploads what this makes, so a dry run shows all but the uploads and the images of other architectures.
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from tests import parts_list, release_facts

ROOT = Path(__file__).parent.parent
CHART = ROOT / "charts" / "splitinference"
SUMS = "SHA256SUMS"


class ReleaseError(Exception):
    """What is wrong, in a sentence."""


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Its stdout. Raises ReleaseError with its last words."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{' '.join(str(word) for word in command[:3])} … failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def tool(name: str) -> str:
    """A program beside this Python, else on the PATH, else Helm of the test cluster's cache."""
    beside = Path(sys.executable).parent / name
    if found := (str(beside) if beside.exists() else shutil.which(name)):
        return found
    built = sorted((Path.home() / ".cache" / "splitinference").glob(f"bin-{name}-*/{name}"))
    if not built:
        raise ReleaseError(f"{name} is missing: install it, or run `make prepare`")
    return str(built[-1])


def version() -> str:
    """The one version of package and chart."""
    found = set(release_facts.versions().values())
    if len(found) != 1:
        raise ReleaseError(f"package and chart have different versions: {', '.join(sorted(found))}")
    return found.pop()


def notes(changelog: str, wanted: str) -> str:
    """What the changelog says of this version; of `Unreleased` where it has no section yet. Raises ReleaseError where that is nothing."""
    sections = dict(re.findall(r"^## \[?([^\]\s]+)\]?[^\n]*\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL))
    text = (sections.get(wanted) or sections.get("Unreleased") or "").strip()
    if not text:
        raise ReleaseError(f"CHANGELOG.md says nothing of {wanted}")
    check = (
        "## Check what you got\n\n"
        "```console\n"
        f"$ gh attestation verify oci://ghcr.io/OWNER/REPOSITORY/operator:{wanted} --repo OWNER/REPOSITORY\n"
        f"$ gh attestation verify oci://ghcr.io/OWNER/REPOSITORY/charts/splitinference:{wanted} --repo OWNER/REPOSITORY\n"
        f"$ sha256sum --check {SUMS}\n"
        "```\n"
    )
    return f"{text}\n\n{check}"


def package(folder: Path) -> None:
    """Wheel and sdist; the wheel has all that the commands import, and nothing of the tests."""
    words = ("--build-constraints", ROOT / "requirements-build.txt", "--require-hashes", "--out-dir", folder)
    run(tool("uv"), "build", *words, ROOT)
    (folder / ".gitignore").unlink(missing_ok=True)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names} - {f"splitinference-{version()}.dist-info"}
    if tops != {"splitinference", "splitinference_modelfiles", "splitinference_protocol"}:
        raise ReleaseError(f"the wheel has {', '.join(sorted(tops))}")
    (sdist,) = folder.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        if odd := [name for name in archive.getnames() if "/.venv/" in name or "/build/" in name]:
            raise ReleaseError(f"the sdist has {odd[0]}")


def installed(folder: Path) -> None:
    """The wheel in an environment of its own, with the pinned packages of the operator: its commands start."""
    (wheel,) = folder.glob("*.whl")
    home = folder / ".venv"
    run(tool("uv"), "venv", "--quiet", "--python", sys.executable, home)
    python = home / "bin" / "python"
    run(tool("uv"), "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", ROOT / "requirements-dev.txt")
    run(tool("uv"), "pip", "install", "--quiet", "--python", python, "--no-deps", wheel)
    for command in ("splitinference", "kubectl-split"):
        if "plan" not in run(home / "bin" / command, "--help", cwd=folder):
            raise ReleaseError(f"{command} --help of the installed wheel does not name `plan`")
    shutil.rmtree(home)


def chart(folder: Path) -> None:
    """The chart's archive, which brings CRD, alerts and dashboard, and lints."""
    helm = tool("helm")
    run(helm, "package", CHART, "--destination", folder)
    archive = folder / f"splitinference-{version()}.tgz"
    run(helm, "lint", "--strict", archive)
    words = ("--set", "prometheusRule.enabled=true", "--set", "dashboard.enabled=true")
    kinds = set(re.findall(r"^kind: (\w+)$", run(helm, "template", "si", archive, *words), re.MULTILINE))
    if missing := {"CustomResourceDefinition", "Deployment", "PrometheusRule", "ConfigMap"} - kinds:
        raise ReleaseError(f"the packaged chart makes no {', '.join(sorted(missing))}")


def parts(folder: Path) -> None:
    """The parts list of each image."""
    for image in parts_list.REQUIREMENTS:
        parts_list.main(image, str(folder / f"{image}.cdx.json"))


def sums(folder: Path) -> str:
    """Digests of all files, as `sha256sum --check` reads them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def main(target: str) -> int:
    """Make all of it anew in the folder."""
    folder = Path(target).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for name, part in {"package": package, "commands": installed, "chart": chart, "parts lists": parts}.items():
            print(f"{name} …", flush=True)  # noqa: T201
            part(folder)
        (folder / "notes.md").write_text(notes((ROOT / "CHANGELOG.md").read_text(), version()))
    except ReleaseError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    (folder / SUMS).write_text(sums(folder))
    print((folder / SUMS).read_text(), end="")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
