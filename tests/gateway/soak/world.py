"""What the soak runs on: a shortened real model, two pipelines of it cut at different points, and the gateway; all on loopback."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.gateway.real_segments import Inside, Segment, tls, wait_for
from tests.segment.host import family, free_ports

MODEL = "soak"
BLOCKS = 6
PIPELINES = {"left": ((0, 3), (3, 8)), "right": ((0, 5), (5, 8))}
START_SECONDS = 300.0


def shortened(model: Path, folder: Path) -> Path:
    """The model with its first blocks alone: text without sense, but quick, with the real tokenizer and the real files."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": BLOCKS}))
    return folder


@dataclass
class World:
    """Processes, and what the gateway says. `stays` are never killed: their memory is watched from the beginning to the end."""

    folder: Path
    url: str
    inside: Inside
    gateway: subprocess.Popen[bytes]
    pipelines: dict[str, list[Segment]]
    revisions: int = 0
    restarts: int = 0
    stopping: bool = False

    @property
    def segments(self) -> list[Segment]:
        """Of both pipelines."""
        return [segment for pipeline in self.pipelines.values() for segment in pipeline]

    @property
    def stays(self) -> list[Segment]:
        """One of each pipeline: a first and a last one."""
        return [self.pipelines["left"][0], self.pipelines["right"][-1]]

    def processes(self, segment: Segment) -> list[int]:
        """The segment's server with all its children."""
        return family(segment.process.pid) if segment.process is not None and segment.process.poll() is None else []

    def route(self, pipeline: str, drain_seconds: float) -> None:
        """Cut over to this pipeline."""
        self.revisions += 1
        hops = [[segment.hop for segment in self.pipelines[pipeline]]]
        document = {"v": 1, "revision": f"r{self.revisions}", "pipelines": hops, "drainSeconds": drain_seconds}
        file = self.folder / "route.json"
        file.with_suffix(".new").write_text(json.dumps(document))
        file.with_suffix(".new").rename(file)

    def counted(self, name: str) -> float:
        """A metric of the gateway, summed over its labels."""
        lines = self.metrics().splitlines()
        full = f"splitinference_gateway_{name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{full} ", f"{full}{{")))

    def metrics(self) -> str:
        """All metrics of the gateway."""
        return self.inside.exposition()

    def told(self) -> Any:
        """The gateway's internal routes document."""
        return self.inside.routes()

    def keep(self) -> None:
        """Start again what has ended, as a kubelet does."""
        for segment in self.segments:
            if not self.stopping and segment.process is not None and segment.process.poll() is not None:
                self.restarts += 1
                segment.serve()

    def started(self) -> bool:
        """Everything serves. A gateway that ended is an error, a segment that ended is started again."""
        if self.gateway.poll() is not None:
            raise RuntimeError("the gateway ended at its start")
        self.keep()
        return bool(urllib.request.urlopen(f"{self.url}/readyz", timeout=1).status == 200) and self.all_ready()

    def all_ready(self) -> bool:
        """A token runs through every segment."""
        return all(segment.ready() for segment in self.segments)


@contextmanager
def world(folder: Path, model: Path) -> Iterator[World]:
    """All of it, ready; ended at the end, and its logs shown when something raised."""
    short = shortened(model, folder / "model")
    ranges = [cut for cuts in PIPELINES.values() for cut in cuts]
    ports = free_ports(3 * len(ranges) + 1)
    names = {f"{MODEL}-{start}-{end}": f"127.0.0.1:{ports[3 * i + 1]}" for i, (start, end) in enumerate(ranges)}
    made = {
        cut: Segment(MODEL, *cut, ports[3 * i : 3 * i + 3], names, folder / f"segment-{cut[0]}-{cut[1]}.log", str(short))
        for i, cut in enumerate(ranges)
    }
    settings = {
        "SI_MODEL_ID": MODEL,
        "SI_MODEL_PATH": str(short),
        "SI_ROUTE_FILE": str(folder / "route.json"),
        "SI_PEER_ADDRESSES": json.dumps(names),
        "SI_PORT": str(ports[-1]),
        "SI_MAX_CONCURRENT_SEQUENCES": "4",
        "SI_REPLAY_SECONDS": "300",
        "SI_LOG_LEVEL": "WARNING",
        **(inside := Inside.of(folder)).settings,
        **tls(folder, "gateway"),
    }
    for segment in made.values():
        segment.serve()
    with (folder / "gateway.log").open("wb") as log:
        gateway = subprocess.Popen([sys.executable, "-m", "splitinference_gateway"], env={**os.environ, **settings}, stdout=log, stderr=log)
    pipelines = {name: [made[cut] for cut in cuts] for name, cuts in PIPELINES.items()}
    here = World(folder, f"http://127.0.0.1:{ports[-1]}", inside, gateway, pipelines)
    here.route("left", 1.0)
    try:
        wait_for(here.started, START_SECONDS)
        yield here
    except BaseException:
        for log_file in sorted(folder.glob("*.log")):
            sys.stderr.write(f"--- {log_file.name}\n{log_file.read_text(errors='replace')[-3000:]}\n")
        raise
    finally:
        here.stopping = True
        gateway.terminate()
        for segment in made.values():
            if segment.process is not None and segment.process.poll() is None:
                segment.process.send_signal(signal.SIGTERM)
        for segment in made.values():
            _ended(segment)
        with contextlib.suppress(subprocess.TimeoutExpired):
            gateway.wait(timeout=90)
        gateway.kill()
        gateway.wait()


def _ended(segment: Segment) -> None:
    """Wait for a server that was told to end; in the end kill it."""
    end = time.monotonic() + 30
    while segment.process is not None and segment.process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    if segment.process is not None and segment.process.poll() is None:
        segment.kill()
