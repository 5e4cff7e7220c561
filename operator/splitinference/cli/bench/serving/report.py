"""What `bench serve` says: the report, and its tables for a reader."""

import sys

from pydantic import Field
from rich.console import Console
from rich.table import Table

from splitinference.cli.bench.serving.figures import Ratios, Setup, Strict
from splitinference.cli.bench.serving.machine import Machine
from splitinference.cli.bench.serving.peers import PeerRatios


class Report(Strict):
    """What `splitinference bench serve --json` prints."""

    model: str
    dtype: str
    encoding: str | None = Field(description="of the GGUF file that llama.cpp and its segments serve; null: a run without them")
    threads: int = Field(description="of every segment, of the unsplit model, and of each server")
    weights: str = Field(description="how torch segments hold them: stored, or packed for the processor; the unsplit model: stored")
    machine: Machine
    kernels: dict[str, tuple[str, ...]] = Field(description="by setup: what its own libraries say that they compute with")
    rounds: int
    setups: tuple[Setup, ...]
    hop_ms_by_bytes: dict[str, float]
    token_ms_by_part: dict[str, dict[str, float]] = Field(
        description="by setup, medians of the parts of the time between two tokens of one client. They are computing and waiting in the "
        "stages, links between stages, and the way from gateway to first stage and back. The rest is the gateway, HTTP and the client"
    )
    ratios: Ratios
    peers: PeerRatios | None = Field(description="null: a run without --peers")
    not_measured: dict[str, str] = Field(description="other systems, and why they are not in this run")


def show(report: Report) -> None:
    """Tables for a reader."""
    here = report.machine
    encoded = f", GGUF {report.encoding}" if report.encoding else ""
    title = f"{report.model}, {report.dtype}{encoded}, {report.threads} thread(s), {report.weights} weights"
    table = Table("setup", "clients", "prompt", "tokens/s", "TTFT p50/p90 ms", "TPOT p50/p90/p99 ms", "same text", title=title)
    for each in report.setups:
        first, other = each.ttft_ms, each.tpot_ms
        gaps = f"{other.p50:.1f} / {other.p90:.1f} / {other.p99:.1f}" if other else ""
        same = {True: "yes", False: "no", None: ""}[each.same_text_as_unsplit]
        first_shown = f"{first.p50:.0f} / {first.p90:.0f}"
        table.add_row(each.name, str(each.clients), str(each.prompt_tokens), f"{each.tokens_per_second:.1f}", first_shown, gaps, same)
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(table)
    peers = report.peers.model_dump().items() if report.peers else ()
    for name, value in (*report.ratios.model_dump().items(), *peers):
        console.print(f"{name}: {value}")
    console.print(f"{here.processor}, {here.cores} cores, {here.memory_mib} MiB, Linux {here.kernel}; flags: {' '.join(here.flags)}")
    console.print(f"load average before the first round and after each: {' '.join(f'{load:g}' for load in here.load)}")
    if here.is_busy:
        console.print("Other work ran on this machine: trust ratios, which are taken within a round, and no times.")
    for name, chosen in report.kernels.items():
        console.print(f"{name}: {', '.join(chosen) or 'says nothing of its kernels'}")
    for name, why in report.not_measured.items():
        console.print(f"not measured: {name}: {why}", soft_wrap=True)
