"""Environments of clients: made once, kept in the cache under the content of their list of packages."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from e2e.conformance.clients import NODE, Client

REQUIREMENTS = Path(__file__).with_name("requirements")
PROGRAMS = Path(__file__).with_name("clients")
_INSTALL_SECONDS = 1200


class NotInstalledError(RuntimeError):
    """A client cannot be had here; the message says why."""


@dataclass(frozen=True)
class Command:
    """How a client's program is started. `version`: of the client."""

    words: tuple[str, ...]
    environment: dict[str, str]
    version: str


def program(client: Client, cache: Path) -> Command:
    """Install what the client needs, and say how to start it.

    Raises:
        NotInstalledError: it cannot be installed.
    """
    return _of_node(client, cache) if client.kind == NODE else _of_python(client, cache)


def _of_python(client: Client, cache: Path) -> Command:
    file = PROGRAMS / f"{client.program}.py"
    if not client.requirements:
        return Command((sys.executable, str(file)), {}, "")
    content = (REQUIREMENTS / f"{client.requirements}.txt").read_bytes()
    folder = cache / "conformance" / f"{client.requirements}-{hashlib.sha256(content).hexdigest()[:10]}"
    python = folder / "bin/python"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        uv = str(Path(sys.executable).with_name("uv"))
        run_words([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        run_words(
            [
                uv,
                "pip",
                "install",
                "--quiet",
                "--python",
                str(python),
                "--require-hashes",
                "-r",
                str(REQUIREMENTS / f"{client.requirements}.txt"),
            ]
        )
        (folder / "whole").touch()
    asks = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    version = subprocess.run([str(python), "-c", asks], capture_output=True, text=True, check=False).stdout.strip()
    return Command((str(python), str(file)), {}, version)


def _of_node(client: Client, cache: Path) -> Command:
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise NotInstalledError("there is no node and npm here")
    content = (REQUIREMENTS / "package-lock.json").read_bytes()
    folder = cache / "conformance" / f"node-{hashlib.sha256(content).hexdigest()[:10]}"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(REQUIREMENTS / name, folder / name)
        run_words(["npm", "ci", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        (folder / "whole").touch()
    modules = folder / "node_modules"
    version = json.loads((modules / client.package / "package.json").read_text())["version"]
    return Command(("node", str(PROGRAMS / f"{client.program}.mjs")), {"CONFORMANCE_NODE_MODULES": str(modules)}, version)


def run_words(words: list[str], folder: Path | None = None) -> None:
    """Run a command of an installation. Raises NotInstalledError with the end of what it said."""
    try:
        done = subprocess.run(
            words, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalledError(f"{Path(words[0]).name}: {error}"[:200]) from error
    if done.returncode != 0:
        raise NotInstalledError((done.stderr.strip().splitlines() or ["it failed without a word"])[-1][:200])
