"""`make demo`: from nothing to a model in segments, a streamed answer, and a move under load, with the time of each step."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import openai
from rich.console import Console
from rich.table import Table

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.progress import Progress, shown
from e2e.stack import AnyCluster, until
from e2e.traffic import Load, Report, Traffic

NAME = "chat"
QUESTION = "What is photosynthesis?"  # one that this small model answers well
MOST_TOKENS = 48
MOVE_SECONDS = 180
TELLING_MS = 3.0
ALONE = Load("one after the other", clients=1)
"""Predictions are for a request alone. Of two clients one's step shares the node with what the other's takes besides."""

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120, soft_wrap=True)


class DemoError(RuntimeError):
    """What did not happen, in a sentence."""


def main() -> int:
    """Exit status 0 when all of it worked and no request failed."""
    begun = time.monotonic()
    opened = ExitStack()
    try:
        if os.environ.get("CLUSTER", "kind") == "current":
            _agreed()
        opened.enter_context(busy_machine(int(os.environ.get("BUSY", "0"))))
        with _shown(begun) as progress:
            cluster = _cluster(progress)
            stack.stand_up(cluster)
            if isinstance(cluster, Cluster):
                with progress.step("nodes come to rest"):
                    stack.comes_to_rest(cluster)
            _serve(cluster)
        console.print(plan_table(stack.resource(cluster, NAME), "The plan"))
        console.print(*_why(stack.resource(cluster, NAME)), sep="\n")
        with stack.endpoint(cluster, NAME) as base_url:
            answer = _ask(base_url)
            _compare(cluster, answer)
            ok = _move(cluster, base_url, begun)
    except (RuntimeError, KeyboardInterrupt) as error:
        console.print(f"\n{error or 'interrupted'}\n`make demo-down` removes all that was made.", style="red", markup=False)
        return 1
    finally:
        opened.close()
    console.print(f"\nAll of it in {time.monotonic() - begun:.0f} s. Look around with:")
    console.print(
        f"  export KUBECONFIG={cluster.env()['KUBECONFIG']}", f"  kubectl get si {NAME}; .venv/bin/kubectl-split status {NAME}", sep="\n"
    )
    console.print("and remove everything with `make demo-down`.")
    return 0 if ok else 1


@contextmanager
def busy_machine(processes: int) -> Iterator[tuple[int, ...]]:
    """So many processes that compute all the time beside the cluster, each for a core, as stress-ng's do; their ids. They end with the
    block, and with this program however it ends."""
    program = "import os\nwhile os.getppid() == int(os.environ['PARENT']):\n    sum(n * n for n in range(200_000))"
    environment = {**os.environ, "PARENT": str(os.getpid())}
    started = [subprocess.Popen([sys.executable, "-c", program], env=environment) for _ in range(processes)]
    try:
        yield tuple(each.pid for each in started)
    finally:
        for each in started:
            each.terminate()
            each.wait()


@contextmanager
def _shown(begun: float) -> Iterator[Progress]:
    """The progress display, with times since the whole demo began."""
    with shown() as progress:
        progress.begun = begun
        yield progress


def _cluster(progress: Progress) -> AnyCluster:
    ours = os.environ.get("CLUSTER", "kind") != "current"
    cluster: AnyCluster = Cluster(progress=progress) if ours else Cluster.current(progress=progress)
    if missing := cluster.missing():
        raise DemoError("\n".join(missing))
    return cluster


def _agreed() -> None:
    """Asks before a cluster that is not ours is changed."""
    context = Cluster.current().context
    question = f"Install the operator, its CRD and a sample into the cluster of context {context!r}? [y/N] "
    if os.environ.get("YES") != "1" and input(question).strip().lower() not in {"y", "yes"}:
        raise DemoError("Nothing was done.")


def _serve(cluster: AnyCluster) -> None:
    with cluster.progress.step("kubectl apply -f config/samples/splitinference.yaml"):
        stack.apply_sample(cluster)
    with cluster.progress.step("kubectl wait --for=condition=Ready si/chat") as step:
        found = stack.wait_ready(cluster, NAME)
        step.note = f"{found['status']['segments']} segments"


def plan_table(found: dict[str, Any], title: str) -> Table:
    """The serving plan, a row each segment, and its totals below. Observed: medians of the gateway's last window, if there is one."""
    plan, seen = found["status"]["plan"], observed(found)
    table = Table(
        title=f"{title} (revision {plan['revision']})",
        caption=totals(found),
        caption_style="",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("stage", "layers", "node"):
        table.add_column(name, no_wrap=True)
    for name in ("weights MiB", "KV MiB", "decode ms: predicted", "observed", "link ms: predicted", "observed"):
        table.add_column(name, justify="right")
    for stage, segment in enumerate(plan["segments"]):
        layers = f"\\[{segment['start']}, {segment['end']})"
        met = seen.get("stages", {}).get(segment["name"], {})
        times = (segment["predictedMs"], met.get("computeMs"), segment["linkMs"], met.get("linkMs"))
        table.add_row(str(stage), layers, segment["node"], *map(figure, (segment["weightMiB"], segment["kvMiB"], *times)))
    return table


def observed(found: dict[str, Any]) -> dict[str, Any]:
    """What the gateway measured of this plan's route; empty while that is nothing."""
    seen: dict[str, Any] = found["status"].get("observed", {})
    return seen if seen.get("revision") == found["status"]["plan"]["revision"] else {}


def figure(value: float | None) -> str:
    """One decimal; a dash for what is not known."""
    return "–" if value is None else f"{value:.1f}"


def totals(found: dict[str, Any]) -> str:
    """The plan's figures: predicted for a request alone, and the medians of those that were observed."""
    plan, seen = found["status"]["plan"], observed(found)
    p = plan["predicted"]
    lines = [
        f"predicted: first token {p['timeToFirstTokenMs']:.0f} ms, then {p['timePerOutputTokenMs']:.1f} ms per token, "
        f"whole request {p['latencyMs']:.0f} ms; bound {plan['bound']:.0f} ms, gap {plan['gap']:.1%}"
    ]
    if seen:
        first, each = (seen.get(name, {}).get("p50") for name in ("timeToFirstTokenMs", "timePerOutputTokenMs"))
        lines.append(
            f"observed: first token {figure(first)} ms, then {figure(each)} ms per token, in the median of {seen['requests']} requests"
        )
    if differ := errors(found):
        lines.append("decode steps, predicted and observed, differ by " + ", ".join(f"{each:.0%}" for each in differ))
    return "\n".join(lines)


def _why(found: dict[str, Any]) -> list[str]:
    return [f"  {line}" for line in found["status"]["plan"].get("explanation", [])]


def _ask(base_url: str) -> str:
    console.print(f"\n[bold]{QUESTION}[/bold]  (openai client, {base_url})")
    started, first, answer = time.monotonic(), 0.0, list[str]()
    with openai.OpenAI(base_url=base_url, api_key="none", timeout=600) as client:
        stream = client.chat.completions.create(
            model=stack.MODEL, messages=[{"role": "user", "content": QUESTION}], max_tokens=MOST_TOKENS, temperature=0, stream=True
        )
        for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                first = first or time.monotonic() - started
                answer.append(text)
                console.print(text, end="", markup=False)
                console.file.flush()
    took = time.monotonic() - started
    console.print(f"\n  first token after {first * 1000:.0f} ms, {len(answer) / took:.1f} tokens/s")
    return "".join(answer)


def _compare(cluster: AnyCluster, answer: str) -> None:
    """The unsplit model's answer to the same question. Packed weights sum in another order, so a close call may go the other way."""
    if not isinstance(cluster, Cluster):
        return  # no engine of ours to run it on
    with cluster.progress.step("ask the unsplit model, transformers' own, on one core"):
        unsplit = stack.unsplit(cluster, QUESTION, MOST_TOKENS)
    table = Table(title="The same question", title_justify="left", show_lines=True)
    for name in ("in segments", "unsplit"):
        table.add_column(name, ratio=1)
    table.add_row(answer.strip(), unsplit.strip())
    console.print(table)
    console.print(f"  {agreement(answer, unsplit)}")


def agreement(answer: str, unsplit: str) -> str:
    """In words: whether both are the same, and if not how long they are."""
    ours, theirs = answer.split(), unsplit.split()
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return "word for word the same" if ours == theirs else f"the first {same} words are the same"


def _move(cluster: AnyCluster, base_url: str, begun: float) -> bool:
    """Another tenant burns CPU on a node that serves; requests run all the time. True when the segment moved and none failed."""
    with _shown(begun) as progress, Traffic(base_url, stack.MODEL, ALONE) as traffic:
        cluster = replace(cluster, progress=progress)
        with progress.step("requests are running"):
            until(lambda: len(traffic.report().requests) >= 4, 120, "four answers")
            before = until(lambda: _calm(cluster), 120, "what an earlier change began has ended")
        busy = stack.busiest_inner_node(before)
        with progress.step(f"another tenant burns CPU on {busy}"):
            cluster.burn(busy)
        burning = time.monotonic()
        try:
            with progress.step("the operator notices and decides") as step:
                decision = until(lambda: _decided(cluster, before), MOVE_SECONDS, f"a decision to leave {busy}")
                step.note = decision["reason"]
            with progress.step("the segment moves: create, load, prove, cut over, drain, delete"):
                after = until(
                    lambda: _settled(cluster, busy),
                    MOVE_SECONDS,
                    f"a whole route without {busy}",
                    progress=lambda: stack.pods_of(cluster, "default"),
                )
            moved = time.monotonic()
            with progress.step("requests run on"):
                done = len(traffic.report().requests)
                until(lambda: len(traffic.report().requests) >= done + 4, 120, "four answers after the move")
                with suppress(stack.NotInTimeError):  # the table then has dashes, and the move was shown all the same
                    after = until(lambda: _measured(cluster), 30, "figures of every stage of the new route")
        finally:
            cluster.stop_burning(busy)
        report = traffic.stop()
    console.print(
        f"\n[bold]{decision['reason']}[/bold]: {decision['message']}", f"  {decision['time']}, {decision.get('transition', '')}\n", sep="\n"
    )
    console.print(plan_table(before, "Before"))
    console.print(plan_table(after, "After"))
    console.print(_traffic_table(report, burning, moved))
    for each in report.failed[:3]:
        console.print(f"  failed: {each.error}", style="red", markup=False)
    return not report.failed


def _decided(cluster: AnyCluster, before: dict[str, Any]) -> dict[str, Any] | None:
    """The decision that changed the plan, once there is one."""
    found = stack.resource(cluster, NAME)
    if found["status"]["plan"]["revision"] == before["status"]["plan"]["revision"]:
        return None
    decision: dict[str, Any] = found["status"]["decisions"][0]
    return decision


def _calm(cluster: AnyCluster) -> dict[str, Any] | None:
    """The resource once nothing is under way or about to be: the move to be shown is this tenant's doing."""
    found = _settled(cluster)
    return None if found is None or stack.confirming(found) else found


def _settled(cluster: AnyCluster, left: str = "") -> dict[str, Any] | None:
    """The resource once nothing is under way, and no segment is on the node `left`."""
    found = stack.resource(cluster, NAME)
    still = any(node == left for _, _, node in stack.placement(found))
    return found if stack.settled(found) and not still else None


def _measured(cluster: AnyCluster) -> dict[str, Any] | None:
    """The resource once the gateway has measured every stage of the plan."""
    found = stack.resource(cluster, NAME)
    stages = observed(found).get("stages", {})
    return found if all(stages.get(each["name"], {}).get("computeMs") for each in found["status"]["plan"]["segments"]) else None


def errors(found: dict[str, Any]) -> list[float]:
    """By how much each stage's observed decode step differs from what was predicted, as a share of that; of stages with both, that take
    long enough to tell: a stage that only looks up embeddings takes a fifth of a millisecond and the server's overhead."""
    stages = observed(found).get("stages", {})
    pairs = [(each["predictedMs"], stages.get(each["name"], {}).get("computeMs")) for each in found["status"]["plan"]["segments"]]
    return [abs(seen - told) / told for told, seen in pairs if told and seen and told >= TELLING_MS]


def _traffic_table(report: Report, burning: float, moved: float) -> Table:
    table = Table(title="What clients saw", title_justify="left")
    for name in ("", "requests", "failed", "tokens", "gap p50 ms", "gap p99 ms", "longest gap ms"):
        table.add_column(name, justify="left" if not name else "right")
    spans = (("before", 0.0, burning), ("during", burning, moved), ("after", moved, float("inf")), ("all", 0.0, float("inf")))
    for name, start, end in spans:
        part = report.within(start, end)
        gaps = (part.gap_percentile(0.5), part.gap_percentile(0.99), part.longest_gap)
        table.add_row(name, str(len(part.requests)), str(len(part.failed)), str(part.tokens), *(f"{gap * 1000:.0f}" for gap in gaps))
    return table


if __name__ == "__main__":
    sys.exit(main())
