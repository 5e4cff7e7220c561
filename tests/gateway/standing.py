"""Two gateways with real segments that stay up: a model that generates text, and a sentence encoder. For programs outside of the image.

    python -m tests.gateway.standing <folder for files> <folder of the decoder> <folder of the encoder>

It prints one line of JSON when both are ready: the ports of OpenAI's API and of KServe over gRPC.
It ends with SIGTERM, or when its input ends.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.gateway.real_segments import Inside, Segment, gateway
from tests.segment.host import free_ports

DECODER = ("SmolLM2-135M-Instruct", ((0, 12), (12, 22), (22, 32)))
ENCODER = ("all-MiniLM-L6-v2", ((0, 4), (4, 8)))


@contextlib.contextmanager
def standing(folder: Path, name: str, cuts: Sequence[tuple[int, int]], model: Path) -> Iterator[dict[str, object]]:
    """A model in segments behind a gateway on loopback."""
    folder.mkdir(parents=True)
    ports, prefix = free_ports(3 * len(cuts) + 2), folder.name
    addresses = {f"{prefix}-{start}-{end}": f"127.0.0.1:{ports[3 * i + 1]}" for i, (start, end) in enumerate(cuts)}
    segments = [
        Segment(prefix, *cut, ports[3 * i : 3 * i + 3], addresses, folder / f"segment-{i}.log", model_path=str(model))
        for i, cut in enumerate(cuts)
    ]
    for segment in segments:
        segment.serve()
    route_file = folder / "route.json"
    route_file.write_text(json.dumps({"v": 1, "revision": "r1", "pipelines": [[s.hop for s in segments]], "drainSeconds": 1}))
    settings = {
        "SI_HOST": "127.0.0.1",
        "SI_MODEL_ID": name,
        "SI_MODEL_PATH": str(model),
        "SI_ROUTE_FILE": str(route_file),
        "SI_PEER_ADDRESSES": json.dumps(addresses),
        "SI_PORT": str(ports[-2]),
        "SI_KSERVE_PORT": str(ports[-1]),
        "SI_MAX_CONTEXT_TOKENS": "2048",
        "SI_MAX_CONCURRENT_SEQUENCES": "4",
        "SI_REPLAY_SECONDS": "300",
        **Inside.of(folder).settings,
    }
    with gateway(settings, folder, f"http://127.0.0.1:{ports[-2]}", segments):
        for segment in segments:
            while not segment.ready():
                pass
        yield {"model": name, "http": ports[-2], "grpc": ports[-1]}


def main(folder: str, decoder: str, encoder: str) -> None:
    """Serve until told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        standing(Path(folder) / "decoder", *DECODER, Path(decoder)) as text,
        standing(Path(folder) / "encoder", *ENCODER, Path(encoder)) as sentences,
    ):
        sys.stdout.write(json.dumps({"decoder": text, "encoder": sentences}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
