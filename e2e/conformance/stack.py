"""The gateways with real segments that clients are run against: one container on the machine's loopback."""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e import data_plane, stack
from e2e.cluster import Cluster


@dataclass(frozen=True)
class Stack:
    """What programs are told, as environment variables."""

    environment: dict[str, str]

    @classmethod
    def of(cls, told: dict[str, Any], decoder: Path, encoder: Path) -> "Stack":
        """Of what the container printed, and the folders of both models."""
        made: dict[str, str] = {}
        for name, folder in (("decoder", decoder), ("encoder", encoder)):
            prefix = f"CONFORMANCE_{name.upper()}"
            made |= {
                prefix: told[name]["model"],
                f"{prefix}_URL": f"http://127.0.0.1:{told[name]['http']}",
                f"{prefix}_GRPC": f"127.0.0.1:{told[name]['grpc']}",
                f"{prefix}_FOLDER": str(folder),
            }
        return cls(made)


@contextmanager
def standing(cluster: Cluster) -> Iterator[Stack]:
    """Both gateways, ready; they end with the block."""
    image = data_plane.gateway_with_segments(cluster)
    decoder, encoder = stack.put_model(cluster), stack.put_encoder(cluster)
    engine, name = cluster.images_engine(), f"{cluster.settings.name}-conformance-{secrets.token_hex(3)}"
    options = ["--rm", "--init", "--interactive", "--network", "host", "--shm-size", "1g", "--read-only", "--tmpfs", "/tmp", "--name", name]
    options += ["-v", f"{decoder}:/model:ro", "-v", f"{encoder}:/encoder:ro"]
    words = [engine.client, "run", *options, image]
    words += ["/opt/gateway/bin/python", "-m", "tests.gateway.standing", "/tmp/standing", "/model", "/encoder"]
    log = (cluster.settings.logs / "conformance.log").open("wb")
    with (
        log,
        subprocess.Popen(words, env={**os.environ, **engine.env()}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the gateways did not become ready; {log.name} says why")
            yield Stack.of(json.loads(line), decoder, encoder)
        finally:
            engine.docker("rm", "-f", name, check=False)
            process.terminate()
