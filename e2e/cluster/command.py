"""Running other programs: what they print goes to a log, and a failure says what was run and how it ended."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


class CommandError(RuntimeError):
    """A program ended with an error. The message holds the command and the end of what it printed."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        tail = "\n".join(output.strip().splitlines()[-15:])
        super().__init__(f"`{' '.join(command)[:300]}` ended with {code}:\n{tail}")
        self.code = code
        self.output = output


TRANSIENT = re.compile(
    r"connection (refused|reset)|i/o timeout|TLS handshake timeout|unexpected EOF|: EOF|http2: client connection lost|broken pipe"
    r"|server is currently unable to handle|etcdserver: (request timed out|leader changed)|apiserver not ready|ServiceUnavailable"
    r"|too many requests|lost connection to pod|net/http: request canceled|connect: no route to host|Timeout: request did not complete",
    re.IGNORECASE,
)
"""What a program says when the API server was restarted or too busy: it may be asked again, and will then answer."""
PATIENCE_SECONDS = 300.0


def transient(error: CommandError) -> bool:
    """Whether the same command may end well in a moment."""
    return TRANSIENT.search(error.output) is not None


def persistent(
    once: Callable[[], str],
    *,
    again: Callable[[CommandError], bool] = transient,
    seconds: float = PATIENCE_SECONDS,
    pause: Callable[[float], object] = time.sleep,
) -> str:
    """Do this until it is done, or fails for a reason that will stay. Raises its last CommandError after so many seconds of failures."""
    end, wait = time.monotonic() + seconds, 1.0
    while True:
        try:
            return once()
        except CommandError as error:
            if time.monotonic() > end or not again(error):
                raise
        pause(wait)
        wait = min(2 * wait, 10.0)


_serial = threading.Lock()


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: str | bytes | None = None,
    log: Path | None = None,
    check: bool = True,
    timeout: float | None = None,
    cwd: Path | None = None,
) -> str:
    """Run `command` to its end and return its stdout. `env` is added to this process's. `log` collects stdout and stderr.

    Raises CommandError when it ends with an error and `check` is set, subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        list(command),
        env={**os.environ, **(env or {})},
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        check=False,
        timeout=timeout,
        cwd=cwd,
    )
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if log is not None:
        _append(log, f"$ {' '.join(command)}\n{out}{err}")
    if check and done.returncode != 0:
        raise CommandError(command, done.returncode, out + err)
    return out


def succeeds(command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 20) -> bool:
    """Whether `command` exists, and ends well within `timeout` seconds."""
    try:
        run(command, env=env, timeout=timeout)
    except (CommandError, subprocess.TimeoutExpired, OSError):
        return False
    return True


def pipe(source: Sequence[str], sink: Sequence[str], *, env: Mapping[str, str] | None = None, log: Path | None = None) -> None:
    """`source | sink`; both must end well."""
    environment = {**os.environ, **(env or {})}
    with subprocess.Popen(list(source), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as first:
        second = subprocess.run(list(sink), env=environment, stdin=first.stdout, capture_output=True, check=False)
        if first.stdout:
            first.stdout.close()
        errors = first.stderr.read().decode(errors="replace") if first.stderr else ""
    if log is not None:
        said = second.stdout.decode(errors="replace") + second.stderr.decode(errors="replace")
        _append(log, f"$ {' '.join(source)} | {' '.join(sink)}\n{errors}{said}")
    if second.returncode != 0:
        raise CommandError(sink, second.returncode, second.stderr.decode(errors="replace") + errors)
    if first.returncode != 0:
        raise CommandError(source, first.returncode, errors)


def _append(log: Path, text: str) -> None:
    with _serial:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(text)
