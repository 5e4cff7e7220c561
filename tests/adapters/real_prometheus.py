"""A real Prometheus with series of the test's own, to evaluate queries by. From the PATH, else from Debian's package, kept in the cache."""

import fcntl
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from e2e.cluster.settings import Settings


@cache
def programs() -> dict[str, str] | str:
    """Paths of `prometheus` and `promtool`; or why there are none."""
    folder = Settings().cache / "debian-prometheus"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        return _programs(folder)


def _programs(folder: Path) -> dict[str, str] | str:
    path = f"{folder}/usr/bin"
    found = {name: shutil.which(name) or shutil.which(name, path=path) for name in ("prometheus", "promtool")}
    if None in found.values():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            return "prometheus and promtool are not on the PATH, and there is no apt-get to fetch them"
        folder.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, capture_output=True, text=True, check=False)
        packages = sorted(folder.glob("prometheus_*.deb"))
        if not packages:
            return f"prometheus is not on the PATH, and apt-get cannot fetch it: {fetched.stderr.strip()[:200]}"
        subprocess.run(["dpkg", "-x", str(packages[-1]), str(folder)], check=True)
        packages[-1].unlink()
        found = {name: shutil.which(name, path=path) for name in found}
    return {name: str(program) for name, program in found.items()}


@contextmanager
def serving_series(lines: Iterable[str], folder: Path, age_seconds: float = 2.0) -> Iterator[str]:
    """URL of a server that scraped these lines of exposition text once, `age_seconds` ago."""
    at = time.time() - age_seconds
    with serving_samples((f"{line} {at:.3f}" for line in lines), folder) as url:
        yield url


@contextmanager
def serving_samples(lines: Iterable[str], folder: Path) -> Iterator[str]:
    """URL of a server that has these samples: lines of exposition text with their times, each series' together and in order. Where no
    Prometheus is to be had, the test is skipped."""
    tools = programs()
    if isinstance(tools, str):
        pytest.skip(tools)
    text, data, config = folder / "series.txt", folder / "data", folder / "prometheus.yml"
    text.write_text("".join(f"{line}\n" for line in lines) + "# EOF\n")
    config.write_text("global: {}\n")
    subprocess.run([tools["promtool"], "tsdb", "create-blocks-from", "openmetrics", text, data], check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [tools["prometheus"], f"--config.file={config}", f"--storage.tsdb.path={data}", f"--web.listen-address={address}"]
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            _ready(f"http://{address}/-/ready", process, folder / "log")
            yield f"http://{address}"
        finally:
            process.terminate()
            process.wait(timeout=20)


def _ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"Prometheus is not ready:\n{log.read_text()[-2000:]}")
