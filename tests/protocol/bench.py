"""What the protocol costs: CPU microseconds of META at each hop, and of an exchange over the wire with and without TLS. Not a test.

    python -m tests.protocol.bench [rounds]

The figures are the least of the rounds: what the code costs, and not what else ran. Both sides of an exchange are in this process, on
loopback, so an exchange is a whole one: a request sent and read, an answer sent and read.
"""

import json
import queue
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from splitinference_protocol.wire import answers
from splitinference_protocol.wire import meta as protocol
from splitinference_protocol.wire.answers import Timing
from splitinference_protocol.wire.request import Hop, Request, TensorMeta
from splitinference_protocol.wire.sampling import Sampling
from tests.wire.peers import Resource, serving

TIMES = 4000
ROUTE = tuple(Hop(f"chat-{start}-{start + 10}-1a2b3c4d", f"seg-9f8e7d6c-{start}-{start + 10}") for start in (10, 20))
STEP = Request("step", "3f0c" * 8, 117, TensorMeta("int64", (1,)), ROUTE, sample=True, sampling=Sampling(), deadline_ms=30_000)
HIDDEN = TensorMeta("bfloat16", (1, 576))
TIMING = Timing("chat-20-30-1a2b3c4d", 0.1, 11.2, 0.0, 11.4, 1.0, "edge-1")


def cpu_us(work: Callable[[], object], rounds: int, times: int = TIMES) -> float:
    """CPU time of one call, all threads of this process, in microseconds."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - began) / times * 1e6)
    return round(min(found), 2)


def meta_figures(rounds: int) -> dict[str, float]:
    """What gateway and hops do with META for one token."""
    came = protocol.encoded(STEP)
    read = protocol.parse(came)
    last = answers.timed(TIMING, {"token": 260, "logprob": -0.12, "top_logprobs": []})

    def back() -> None:
        if answers.first_timing(last) is not None:
            answers.relayed(TIMING, last)

    return {
        "gateway_writes": cpu_us(lambda: protocol.encoded(STEP), rounds),
        "hop_reads": cpu_us(lambda: protocol.parse(came), rounds),
        "hop_hands_on": cpu_us(lambda: protocol.forwarded(read, HIDDEN, 29_999.1), rounds),
        "hop_hands_back": cpu_us(back, rounds),
        "last_answers": cpu_us(lambda: answers.timed(TIMING, {"token": 260, "logprob": -0.12, "top_logprobs": []}), rounds),
        "gateway_reads": cpu_us(lambda: answers.read(last), rounds),
    }


def exchange_us(tls: bool, rounds: int, size: int = 1152) -> dict[str, float]:
    """CPU and wall time of an exchange of `size` bytes each way, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        resource = Resource(Path(folder))
        identities = (resource("segment"), resource("segment")) if tls else (None, None)
        with serving(*identities) as world:
            wire, came, data = world.wire(), queue.SimpleQueue[object](), bytes(size)

            def exchange() -> None:
                wire.send(b"x" * 300, data, 60.0, came.put)
                came.get()

            cpu_us(exchange, 1, 200)
            wall, began = [], time.perf_counter()
            for _ in range(TIMES):
                exchange()
                wall.append(time.perf_counter() - began)
                began = time.perf_counter()
            found = {"cpu": cpu_us(exchange, rounds, 1000), "wall_median": round(sorted(wall)[TIMES // 2] * 1e6, 2)}
            wire.close()
            return found


def main() -> None:
    """Print one JSON object."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    figures = {"meta_us": meta_figures(rounds), "plain_us": exchange_us(False, rounds), "tls_us": exchange_us(True, rounds)}
    print(json.dumps(figures, indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
