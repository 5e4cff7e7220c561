"""Run in the segment image, under one CPU quota after another: what a node of so many cores computes.

This is the product's measurement of nodes (`segment-measure`), but made ready once and without a quota, as that takes most of the time.
It makes /tmp/ready, and for each number of cores that is written to /tmp/asked it writes {"gflops", "gbps", "launch_ms"} to /tmp/answer.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from splitinference_segment.programs import measure, measure_blocks

RUNS = 3
READY, ASKED, ANSWER = (Path("/tmp") / name for name in ("ready", "asked", "answer"))


def speed(works: dict[str, tuple[Callable[[], Any], float]], cores: float) -> dict[str, float]:
    """GFLOP/s and GB/s of a node of so many cores, at most one, and what every layer takes besides, in ms."""
    rates = {name: measure.best(work, cores, runs=RUNS)[0] * amount for name, (work, amount) in works.items()}
    flops, read = (1e9 * rates[name] / cores for name in ("gflops", "gbps"))
    launch = measure.besides_ms(cores / rates["blocks"], measure_blocks.WEIGHTS, flops, read, cores)
    return {"gflops": round(rates["gflops"], 2), "gbps": round(rates["gbps"], 3), "launch_ms": launch}


def main() -> None:
    """Answer until somebody ends the container."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        works = {"gflops": measure.product(torch, torch.bfloat16), "gbps": measure.streamed(torch, torch.bfloat16)}
        works["blocks"] = (measure_blocks.decode_step(torch.bfloat16), float(measure_blocks.BLOCKS))
        READY.touch()
        while True:
            if ASKED.exists():
                cores = float(ASKED.read_text())
                ASKED.unlink()
                partial = ANSWER.with_suffix(".part")
                partial.write_text(json.dumps(speed(works, cores)))
                partial.rename(ANSWER)
            time.sleep(0.1)


if __name__ == "__main__":
    main()
