"""`make bench-model`: what the cost model predicts of a plan beside what a client measures of it, for several plans on the kind cluster.

Cuts and nodes are given by the resource's partition; one client asks requests of the resource's workload, one after the other, as the
prediction has it.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import openai
import yaml
from rich.console import Console
from rich.table import Table

from e2e import results, stack
from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown
from e2e.scene import NAME, workers_of
from e2e.traffic import Request, ask

REQUESTS = 6
PROMPT = "Tell me about the sea, the land and the sky, about rivers and rain, about the wind in the trees and the snow on the hills."
PLANS = ((8, 29, 1), (8, 29, 3), (12, 24, 1))
"""First cut, second cut, and which worker has the middle: the first and the last segment are where the planner puts them."""
ROOMY_MIB = 1400  # so that any cut fits, wherever the gateway runs


@dataclass(frozen=True)
class Row:
    """One plan. Times in ms; the error is predicted over measured, less one."""

    plan: str
    first_token_predicted_ms: float
    first_token_measured_ms: float
    output_token_predicted_ms: float
    output_token_measured_ms: float

    @property
    def first_token_error(self) -> float:
        return self.first_token_predicted_ms / self.first_token_measured_ms - 1

    @property
    def output_token_error(self) -> float:
        return self.output_token_predicted_ms / self.output_token_measured_ms - 1


def measure(cluster: Cluster, first: int, second: int, worker: int) -> Row:
    """Serve with this plan, ask, and compare; the first answer only warms up."""
    manifest = yaml.safe_load(stack.SAMPLE.read_text())
    node = cluster.settings.worker_names()[worker]
    spec = manifest["spec"]
    spec["adaptation"]["mode"] = "Frozen"
    spec["gateway"] = {"prefixReuse": "Off"}  # the prompt is the same each time, and is to be computed each time
    spec["partition"] |= {"allowedSplitPoints": [first, second], "pins": [{"layers": f"{first}:{second}", "node": node}]}
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")  # small nodes cannot hold two plans' segments
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))
    stack.until(lambda: serves(cluster, first, second, node), 240, f"[{first}, {second}) serves on {node}")
    with stack.endpoint(cluster, NAME) as base_url, openai.OpenAI(base_url=base_url, api_key="none", timeout=600) as client:
        answers = [ask(client, stack.MODEL, PROMPT, spec["workload"]["outputTokens"]) for _ in range(REQUESTS + 1)][1:]
    return row(stack.resource(cluster, NAME), answers)


def serves(cluster: Cluster, first: int, second: int, node: str) -> bool:
    """Whether the plan asked for is the one that serves."""
    found = stack.resource(cluster, NAME)
    if "observedGeneration" not in found.get("status", {}):
        return False
    if (planned := stack.condition(found, "Planned")).get("status") == "False":
        raise RuntimeError(planned["message"])
    return stack.settled(found) and (first, second, node) in stack.placement(found)


def row(found: dict[str, Any], answers: Sequence[Request]) -> Row:
    """The plan's prediction beside the medians of the answers."""
    if failed := [answer.error for answer in answers if answer.error]:
        raise RuntimeError(f"a request failed: {failed[0]}")
    predicted = found["status"]["plan"]["predicted"]
    each = [(a.tokens_at[-1] - a.tokens_at[0]) / (len(a.tokens_at) - 1) for a in answers]
    return Row(
        plan=" ".join(f"{node.rpartition('-')[2]}[{start}:{end}]" for start, end, node in stack.placement(found)),
        first_token_predicted_ms=predicted["timeToFirstTokenMs"],
        first_token_measured_ms=1000 * statistics.median(a.tokens_at[0] - a.started for a in answers),
        output_token_predicted_ms=predicted["timePerOutputTokenMs"],
        output_token_measured_ms=1000 * statistics.median(each),
    )


def main() -> int:
    """Measure all plans; print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m e2e.bench_model", description=__doc__)
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    with shown() as progress:
        cluster = Cluster(Settings(name=os.environ.get("E2E_NAME", Settings().name)), progress)
        stack.stand_up(cluster)
        rows = []
        with workers_of(cluster, ROOMY_MIB):
            for plan in PLANS:
                with progress.step(f"[{plan[0]}, {plan[1]}) on worker {plan[2] + 1}"):
                    rows.append(measure(cluster, *plan))
    if words.json:
        about = {"commit": results.commit(), "machine": results.machine()}
        print(json.dumps({**about, "plans": [asdict(each) for each in rows]}, indent=1))
    else:
        print_table(rows)
    return 0


def print_table(rows: Sequence[Row]) -> None:
    """Predicted, measured, error; and the mean of the errors' sizes."""
    mean = statistics.fmean([abs(error) for each in rows for error in (each.first_token_error, each.output_token_error)])
    table = Table(title=f"{results.machine()}, commit {results.commit()}", caption=f"mean absolute error {mean:.0%}", title_justify="left")
    for name in ("plan", "first token: predicted ms", "measured", "error", "each further: predicted ms", "measured", "error"):
        table.add_column(name, justify="left" if name == "plan" else "right")
    for each in rows:
        first = (f"{each.first_token_predicted_ms:.0f}", f"{each.first_token_measured_ms:.0f}", f"{each.first_token_error:+.0%}")
        further = (f"{each.output_token_predicted_ms:.1f}", f"{each.output_token_measured_ms:.1f}", f"{each.output_token_error:+.0%}")
        table.add_row(each.plan, *first, *further)
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    sys.exit(main())
