"""Play the attacks one after the other, print a row of figures for each, and fail where one did harm."""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from e2e.hostile.attacks import ATTACKS
from e2e.hostile.sending import KEY, MODEL
from e2e.hostile.watching import OTHER_KEY, Watch, memory_mib, watched
from tests.gateway.model_folder import write_model
from tests.gateway.toy_chain import toy_segments
from tests.segment.host import free_ports

PACKAGE = Path(__file__).parents[2] / "images" / "gateway"
LIMIT_MIB = 512.0  # the chart's gateway.memory
HEALTH_SECONDS = 1.0
_SHARE = 0.95  # of the answers of /healthz that must come in time: this machine has other work too
_SERVED = 0.9  # of another client's requests
_ATTACK_SECONDS = 60.0
_STEP_SECONDS = 0.002


@dataclass(frozen=True)
class Played:
    """One attack and what it did."""

    name: str
    what: str
    watch: Watch
    answers: str
    alive: bool

    @property
    def harm(self) -> list[str]:
        """What should not have happened."""
        found = []
        if not self.alive:
            found.append("the gateway ended")
        if self.watch.peak_mib > LIMIT_MIB:
            found.append(f"{self.watch.peak_mib:.0f} MiB, the pod's limit is {LIMIT_MIB:.0f}")
        if (late := self.watch.health_percentile(_SHARE)) > HEALTH_SECONDS:
            found.append(f"/healthz took {late:.2f} s at the {_SHARE:.0%} percentile")
        if self.watch.served < _SERVED:
            found.append(f"another client got {self.watch.served:.0%} of its answers")
        return found


@dataclass(frozen=True)
class Gateway:
    """The process under attack."""

    process: asyncio.subprocess.Process
    http: int
    grpc: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"


@asynccontextmanager
async def gateway(folder: Path, package: Path) -> AsyncIterator[Gateway]:
    """A gateway with API keys, in front of two segments with a toy model."""
    segments = await toy_segments("a", "b")
    for segment in segments:
        segment.seconds = _STEP_SECONDS
    pipeline = [segment.hop for segment in segments]
    (folder / "route.json").write_text(json.dumps({"v": 1, "revision": "r", "pipelines": [pipeline]}))
    (folder / "keys").write_text(f"{KEY}\n{OTHER_KEY}\n")
    model = folder / "model"
    model.mkdir()
    http, grpc, internal, metrics = free_ports(4)
    settings = {
        "NAME": MODEL, "MODEL_PATH": write_model(model), "ROUTE_FILE": folder / "route.json", "API_KEYS_FILE": folder / "keys",
        "PEER_ADDRESSES": json.dumps(segments[0].peers), "HOST": "127.0.0.1", "PORT": http, "KSERVE_PORT": grpc, "INTERNAL_PORT": internal,
        "METRICS_PORT": metrics, "INSECURE": "true", "LAMEDUCK_SECONDS": 0, "SHUTDOWN_SECONDS": 1, "LOG_LEVEL": "ERROR",
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(package), **{f"SI_{name}": str(value) for name, value in settings.items()}}
    log = await asyncio.to_thread((folder / "log").open, "wb")
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "splitinference_gateway", env=environment, stdout=log, stderr=log)
    made = Gateway(process, http, grpc)
    try:
        await _ready(made, folder / "log")
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        log.close()
        for segment in segments:
            await segment.die()


async def _ready(target: Gateway, log: Path) -> None:
    async with asyncio.timeout(60), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"{target.url}/readyz") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                if target.process.returncode is not None:
                    raise SystemExit(f"the gateway did not start:\n{log.read_text()}") from None
            await asyncio.sleep(0.1)


async def play(name: str, target: Gateway, most_mib: float) -> Played:
    """One attack, from a process of its own."""
    command = [sys.executable, "-m", "e2e.hostile.attacks", name, str(target.http), str(target.grpc)]
    body = {"model": MODEL, "prompt": "hello", "max_tokens": 8, "temperature": 0}
    async with watched(target.process.pid, target.url, body, most_mib) as watch:
        attacker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            said, _ = await asyncio.wait_for(attacker.communicate(), _ATTACK_SECONDS)
        except TimeoutError:
            attacker.kill()
            await attacker.wait()
            said = b""
    answers = json.loads(said)["answers"] if said else {}
    told = ", ".join(f"{status} × {count}" for status, count in sorted(answers.items()))
    return Played(name, ATTACKS[name][0], watch, told, target.process.returncode is None)


def row(played: Played) -> str:
    """A line of the table."""
    watch = played.watch
    worst, late = watch.health_percentile(1.0), watch.health_percentile(_SHARE)
    served = f"{sum(status == 200 for status in watch.others)}/{len(watch.others)}"
    figures = f"{watch.peak_mib:.0f} MiB | {late * 1000:.0f} | {worst * 1000:.0f} | {served}, {watch.slowest_other:.1f} s"
    return f"| {played.name}: {played.what} | {figures} | {played.answers or '–'} | {'; '.join(played.harm) or 'no harm'} |"


async def main(names: list[str], package: Path, most_mib: float) -> int:
    """Play all; 1 where one did harm."""
    print("| attack | memory peak | /healthz p95 ms | worst ms | another client | answers | |")
    print("|---|---|---|---|---|---|---|", flush=True)
    harmed = 0
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), package) as target:
            print(f"| before: nothing | {memory_mib(target.process.pid):.0f} MiB | | | | | |", flush=True)
            for name in names:
                played = await play(name, target, most_mib)
                print(row(played), flush=True)
                harmed += bool(played.harm)
                if not played.alive:
                    break
        errors = [line for line in (Path(folder) / "log").read_text(errors="replace").splitlines() if "Traceback" in line]
    if errors:
        print(f"the gateway's log has {len(errors)} tracebacks", file=sys.stderr)
    return 1 if harmed or errors else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ATTACK", help=f"all, or some of: {', '.join(ATTACKS)}")
    parser.add_argument("--package", type=Path, default=PACKAGE, help="folder with another splitinference_gateway to compare with")
    parser.add_argument("--most-mib", type=float, default=3000.0, help="give up on a gateway that takes more")
    given = parser.parse_args()
    if unknown := set(given.names) - ATTACKS.keys():
        parser.error(f"no such attack: {', '.join(sorted(unknown))}")
    sys.exit(asyncio.run(main(given.names or list(ATTACKS), given.package.resolve(), given.most_mib)))
