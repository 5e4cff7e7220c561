"""`make test` after its checks: first all that nobody's work disturbs, in two lanes; then, with the machine to itself, all that measures.

The first lane has the tests without a cluster, and those inside the images. The second starts the kind cluster and has the tests of the API
server; the cluster stays for the end-to-end tests, which come last and remove it. Nothing is left behind, whatever ends this.
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType

from e2e.cluster import Cluster
from e2e.cluster.progress import shown
from e2e.cluster.settings import Settings
from e2e.conftest import CLUSTER, KEEP

# Collected in this order, so that the longest begins first.
WITHOUT_CLUSTER = ["e2e/test_data_plane.py", "tests", "-m", "not cluster", "-n", "4", "--dist", "loadfile", "--no-loadscope-reorder"]
API_SERVER = ["tests/integration"]
END_TO_END = ["e2e", "-m", "cluster and not long"]


def main() -> int:
    """Exit status: 0 when all passed."""
    signal.signal(signal.SIGTERM, _interrupted)
    try:
        return beside_each_other() or pytest(END_TO_END).wait()
    finally:
        if not KEEP:
            with shown() as progress:
                Cluster(Settings(name=CLUSTER), progress).down()


def beside_each_other() -> int:
    """Both lanes; the second lane's output is shown when it is done. The status of the first that failed, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "api-server.txt"
        with output.open("wb") as file:
            lanes = [pytest(WITHOUT_CLUSTER, keep=True), pytest(API_SERVER, keep=True, output=file.fileno())]
            try:
                codes = [lane.wait() for lane in lanes]
            finally:
                for lane in lanes:
                    if lane.poll() is None:
                        lane.send_signal(signal.SIGINT)
                for lane in lanes:
                    lane.wait()
        sys.stdout.write(output.read_text(errors="replace"))
        sys.stdout.flush()
    return next((code for code in codes if code), 0)


def pytest(words: list[str], *, keep: bool = KEEP, output: int | None = None) -> "subprocess.Popen[bytes]":
    """Started; `keep` leaves the cluster running for the next."""
    environment = {**os.environ, "E2E_KEEP": "1" if keep else "0"}
    return subprocess.Popen([sys.executable, "-m", "pytest", *words], env=environment, stdout=output, stderr=output and subprocess.STDOUT)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


if __name__ == "__main__":
    sys.exit(main())
