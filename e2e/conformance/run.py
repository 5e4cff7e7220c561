"""Runs a client's program and reads what it prints: a line of JSON for each feature."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping

from e2e.conformance.clients import Client
from e2e.conformance.environments import Command
from e2e.conformance.report import FAILED, OK, REFUSED, Outcome

_SECONDS = 1200


def outcomes(client: Client, command: Command, environment: Mapping[str, str]) -> list[Outcome]:
    """What became of each feature; a program that ends early is a failed feature of its own."""
    whole = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **command.environment, **environment}
    whole = {name: value for name, value in whole.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command.words, env=whole, cwd=tempfile.gettempdir(), capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Outcome(client.name, command.version, "its program", FAILED, str(error)[:300])]
    found = [outcome for line in done.stdout.splitlines() if (outcome := read(client.name, command.version, line)) is not None]
    if done.returncode != 0 or not found:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        found.append(Outcome(client.name, command.version, "its program", FAILED, said[:300]))
    return found


def read(name: str, version: str, line: str) -> Outcome | None:
    """One line; None for what a library printed."""
    try:
        told = json.loads(line)
        feature, ok, remark = str(told["feature"]), told["ok"] is True, str(told["remark"])
    except (ValueError, KeyError, TypeError):
        return None
    result = FAILED if not ok else REFUSED if remark.startswith("400") else OK
    return Outcome(name, version, feature, result, remark)
