"""What this node computes when a segment runs on it: FLOP/s of matrix products and GB/s of weights that are streamed, by data type, and the
milliseconds that each layer takes besides.

It takes some seconds, gives way to others, and writes one line of JSON to standard output and to the container's termination message. As a
segment does, it uses as many threads as SI_THREADS says. Each figure is the best of several runs: all that disturbs one makes it slower.
A run is longer than a scheduler's period, so that a node that may use half of a core is not taken for one that has all of it.
"""

import argparse
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_SECONDS = 0.4
RUNS = 4
TOKENS, WIDTH = 256, 1024
"""A prompt and a layer of this size: its product stays in any processor's caches."""
ROWS, COLUMNS = 4096, 4096
STREAMED_BYTES = 128 << 20
"""Weights that a matrix-vector product walks through before it comes back to the first: more than a core keeps in its caches."""
NICENESS = 10
_TERMINATION_LOG = Path("/dev/termination-log")


def best(work: Callable[[], Any], cores: float, seconds: float = RUN_SECONDS, runs: int = RUNS) -> tuple[float, float]:
    """How often the work would be done in a second by all of `cores`, in the best of the runs; and the share of them that this run got.

    While others have the cores, nothing is done: so the rate is that of the time that the run did get."""
    work()  # the first one allocates, and chooses kernels
    found = (0.0, 0.0)
    for _ in range(runs):
        times, began, used = 0, time.perf_counter(), time.process_time()
        while (passed := time.perf_counter() - began) < seconds:
            work()
            times += 1
        share = min(1.0, max(1e-3, (time.process_time() - used) / passed / cores))
        found = max(found, (times / passed / share, share))
    return found


def product(torch: Any, dtype: Any) -> tuple[Callable[[], Any], float]:
    """A prompt through one layer, as in prefill, and the billions of operations in it."""
    layer, prompt = _layer(torch, dtype, WIDTH, WIDTH), torch.rand(TOKENS, WIDTH).to(dtype)
    return (lambda: layer(prompt)), 2 * TOKENS * WIDTH**2 / 1e9


def streamed(torch: Any, dtype: Any) -> tuple[Callable[[], Any], float]:
    """One token through one layer after the other, as in decode, and the billions of bytes of weights in each."""
    size = ROWS * COLUMNS * torch.empty(0, dtype=dtype).element_size()
    layers = itertools.cycle([_layer(torch, dtype, COLUMNS, ROWS) for _ in range(max(1, STREAMED_BYTES // size))])
    token = torch.rand(1, COLUMNS).to(dtype)
    return (lambda: next(layers)(token)), size / 1e9


def _layer(torch: Any, dtype: Any, width: int, rows: int) -> Any:
    """A linear layer, packed as segments pack theirs."""
    from splitinference_segment.torch_ops.packing import can_pack, packed

    layer = torch.nn.Linear(width, rows, bias=False, dtype=dtype)
    torch.nn.init.uniform_(layer.weight, -0.01, 0.01)
    return packed(layer) if can_pack(dtype, torch.device("cpu")) else layer


def launch_ms(torch: Any, threads: int, cores: float) -> float:
    """Milliseconds of each layer in a decode step that are neither reading nor computing, on a node of so many cores.

    One thread does this work, so more cores than one do not speed it up. It is measured with one thread, and so is what is subtracted."""
    torch.set_num_threads(1)
    try:
        dtype = torch.bfloat16
        work, amount = product(torch, dtype)
        flops = best(work, cores, runs=2)[0] * amount * 1e9 / cores
        work, amount = streamed(torch, dtype)
        read = best(work, cores, runs=2)[0] * amount * 1e9 / cores
        del work  # and only now transformers, which takes a hundred MiB
        from splitinference_segment.programs import measure_blocks

        each = cores / best(measure_blocks.decode_step(dtype), cores)[0] / measure_blocks.BLOCKS
    finally:
        torch.set_num_threads(threads)
    return besides_ms(each, measure_blocks.WEIGHTS, flops, read, cores)


def besides_ms(seconds: float, weights: int, flops: float, read: float, cores: float) -> float:
    """What of a layer's seconds of one core is neither computing nor reading its 16-bit weights, at `flops` and `read` (bytes) a second of
    one core; in ms on a node of so many cores. Four digits."""
    besides = seconds - 2 * weights * (1 / flops + 1 / read)
    return float(f"{1e3 * max(0.0, besides) / min(1.0, cores):.4g}")


def measured(threads: int, cores: float) -> dict[str, Any]:
    """All figures, for a node that lets a segment have so many threads and cores."""
    import torch

    torch.set_num_threads(threads)
    figures: dict[str, Any] = {}
    shares = []
    with torch.inference_mode():
        for name in ("bfloat16", "float32"):
            dtype = getattr(torch, name)
            try:
                found = {}
                for key, make in (("gflops", product), ("gbps", streamed)):
                    work, amount = make(torch, dtype)
                    rate, share = best(work, cores)
                    del work  # with its weights, before the next ones are made
                    found[key] = float(f"{rate * amount:.4g}")
                    shares.append(share)
            except RuntimeError as error:  # a data type for which torch has no kernel here
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            figures[name] = found
        try:
            launch = launch_ms(torch, threads, cores)
        except (ImportError, RuntimeError) as error:
            print(f"launch_ms is left out: {error}", file=sys.stderr)
        else:
            for found in figures.values():
                found["launch_ms"] = launch
    return {
        "v": 1,
        **figures,
        "threads": threads,
        "cores": cores,
        "share": round(min(shares, default=0.0), 3),
        "cpu": processor(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model; empty where the kernel does not say it."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip()[:80] for line in lines if line.startswith("model name")), "")


def main(arguments: list[str] | None = None) -> int:
    """Measure and say it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("SI_THREADS") or 1))
    parser.add_argument(
        "--millicores",
        type=int,
        default=int(os.environ.get("SI_MILLICORES") or 0),
        help="that the container may use; 0: one for each thread",
    )
    options = parser.parse_args(arguments)
    if options.threads < 1 or options.millicores < 0:
        parser.error("threads should be at least 1, millicores at least 0")
    os.nice(NICENESS)
    line = json.dumps(measured(options.threads, options.millicores / 1000 or float(options.threads)), separators=(",", ":"))
    print(line)
    if _TERMINATION_LOG.exists():
        _TERMINATION_LOG.write_text(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
