"""Pipelines, nodes and moves as lines of text with styles. As wide as asked, never cut where that would hide a name."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from rich.text import Text

from splitinference.view import LinkView, MoveView, NodeView, PipelineView, PlanView, SegmentView

_MOST_BAR = 32
_LEAST_BAR = 6
_PHASES = {"Proven": ("●", "*", "green"), "Ready": ("◐", "o", "yellow"), "Starting": ("◐", "o", "yellow"), "Failed": ("✗", "x", "bold red"),
           "Leaving": ("◌", "-", "dim"), "Missing": ("○", ".", "red"), "New": ("○", "+", "green")}  # fmt: skip


@dataclass(frozen=True)
class Pen:
    """With which characters and how wide to draw."""

    width: int
    fancy: bool = True

    def mark(self, phase: str) -> tuple[str, str]:
        """The sign of a phase, and its style."""
        fancy, plain, style = _PHASES.get(phase, ("?", "?", ""))
        return (fancy if self.fancy else plain), style

    def bar(self, start: int, end: int, layers: int, cells: int) -> str:
        """Which of all layers a segment has, as a bar of so many cells. A segment fills one at least."""
        full, empty = ("█", "·") if self.fancy else ("#", ".")
        first = start * cells // max(layers, 1)
        last = max(first + 1, -(-end * cells // max(layers, 1)) if end >= layers else end * cells // max(layers, 1))
        return empty * first + full * (last - first) + empty * (cells - last)

    @property
    def arrow(self) -> str:
        """Between before and after."""
        return "→" if self.fancy else "->"

    @property
    def down(self) -> str:
        """The way to the next stage."""
        return "│" if self.fancy else "|"

    @property
    def back(self) -> str:
        """The way from the last stage back to the gateway."""
        return "╰─▶" if self.fancy else "`->"


def chains(pipelines: Sequence[PipelineView], pen: Pen) -> Iterator[Text]:
    """All pipelines, one below the other."""
    for pipeline in pipelines:
        yield from chain(pipeline, pen, f"pipeline {pipeline.number}" if len(pipelines) > 1 else "")


def chain(pipeline: PipelineView, pen: Pen, title: str = "") -> Iterator[Text]:
    """One pipeline from the gateway through its stages and back."""
    layers = max((segment.end for segment in pipeline.segments), default=0)
    ranges = max((len(_range(segment)) for segment in pipeline.segments), default=0)
    names = max((len(_where(segment)) for segment in pipeline.segments), default=0)
    said = {segment.name: figures(segment, pen) for segment in pipeline.segments}
    beside = 2 + 2 + ranges + 2 + 2 + names
    room = pen.width - beside - 2 - max(map(len, said.values()), default=0)
    apart = room < _LEAST_BAR  # the figures get a line of their own
    cells = max(_LEAST_BAR, min(_MOST_BAR, layers, pen.width - beside if apart else room))
    yield Text(f"  gateway{f'  ({title})' if title else ''}", style="bold")
    links = {link.source: link for link in pipeline.links}
    yield Text(f"  {pen.down}", style="dim")
    for index, segment in enumerate(pipeline.segments):
        mark, style = pen.mark(segment.phase)
        line = Text("  ")
        line.append(mark, style=style)
        line.append(f" {_range(segment):>{ranges}}  ")
        line.append(pen.bar(segment.start, segment.end, layers, cells), style="cyan")
        line.append(f"  {_where(segment):<{names}}", style="bold")
        line.append("" if apart else f"  {said[segment.name]}".rstrip())
        line.rstrip()
        yield line
        if apart and said[segment.name]:
            yield Text(f"  {pen.down} {'':>{ranges}}  {said[segment.name]}")
        last = index + 1 == len(pipeline.segments)
        yield Text(f"  {pen.back if last else pen.down}{_link(links.get(segment.name), pen, last)}", style="dim")


def _range(segment: SegmentView) -> str:
    return f"layers {segment.start}:{segment.end}"


def _where(segment: SegmentView) -> str:
    return segment.node + (f"/{segment.processor}" if segment.processor else "") if segment.node else "?"


def figures(segment: SegmentView, pen: Pen) -> str:
    """Memory, times and phase of a segment. Time: predicted → observed."""
    said = []
    if segment.weight_mib is not None:
        said.append(f"{segment.weight_mib:.0f} MiB" + (f" +{segment.kv_mib:.0f} KV" if segment.kv_mib is not None else ""))
    if times := _times(segment.predicted_ms, segment.observed_ms, pen):
        said.append(times)
    if segment.phase and segment.phase != "Proven":
        said.append(segment.phase)
    return "  ".join(said)


def _times(predicted: float | None, observed: float | None, pen: Pen) -> str:
    if predicted is None and observed is None:
        return ""
    left = "?" if predicted is None else f"{predicted:.1f}"
    return f"{left} ms" if observed is None else f"{left} {pen.arrow} {observed:.1f} ms"


def _link(link: LinkView | None, pen: Pen, last: bool) -> str:
    times = _times(link.predicted_ms, link.observed_ms, pen) if link is not None else ""
    return f" {'token ' if last else ''}{times}".rstrip()


def move_lines(moves: Sequence[MoveView], pen: Pen, many_pipelines: bool = False) -> Iterator[Text]:
    """What stays, moves, is created and is deleted."""
    styles = {"stay": "dim", "move": "yellow", "create": "green", "delete": "red"}
    wide = max((len(f"{move.start}:{move.end}") for move in moves), default=0)
    for move in moves:
        where = {"stay": move.source, "move": f"{move.source} {pen.arrow} {move.target}", "create": move.target, "delete": move.source}[
            move.kind
        ]
        weight = f"  ({move.weight_mib:.0f} MiB)" if move.kind in ("move", "create") and move.weight_mib else ""
        pipeline = f"pipeline {move.pipeline}  " if many_pipelines else ""
        run = f"{move.start}:{move.end}"
        yield Text(f"  {move.kind:<6}  {pipeline}layers {run:>{wide}}  {where}{weight}", style=styles[move.kind])


def stage_lines(plan: PlanView) -> Iterator[Text]:
    """Every figure of each segment, as a table. STAGE: predicted compute of one decode step; BATCH: steps computed together; WAIT: how long
    a step waited for others; FACTOR: measured over predicted time of the node."""
    heads = ("SEGMENT", "LAYERS", "NODE", "WEIGHTS", "KV", "STAGE", "OBSERVED", "BATCH", "WAIT", "LINK", "OBSERVED", "FACTOR", "PHASE")
    rows: list[tuple[str, ...]] = [heads]
    for pipeline in plan.pipelines:
        for segment, link in zip(pipeline.segments, pipeline.links, strict=True):
            rows.append(
                (
                    segment.name, f"{segment.start}:{segment.end}", _where(segment), _mib(segment.weight_mib), _mib(segment.kv_mib),
                    _ms(segment.predicted_ms), _ms(segment.observed_ms), "-" if segment.batch is None else f"{segment.batch:.1f}",
                    _ms(segment.queue_ms), _ms(link.predicted_ms), _ms(link.observed_ms),
                    "-" if segment.factor is None else f"{segment.factor:.2f}", segment.phase,
                )
            )  # fmt: skip
    yield from table(rows, right=range(3, 12))


def _mib(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} MiB"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def node_lines(nodes: Sequence[NodeView], wide: bool) -> Iterator[Text]:
    """Nodes as a table: those that hold something of ours, or all."""
    shown = [node for node in nodes if wide or node.held]
    if not shown:
        return
    rows: list[tuple[str, ...]] = [("NODE", "STATE", "ZONE", "CORES", "MEMORY", "OURS", "WHAT WE HOLD"), *map(_node_row, shown)]
    yield from table(rows, right=(3, 4, 5), bad=[index + 1 for index, node in enumerate(shown) if node.cordoned or not node.ready])


def table(rows: Sequence[tuple[str, ...]], right: Collection[int], bad: Collection[int] = ()) -> Iterator[Text]:
    """Rows in columns, the first one as heads. `right`: columns that end at the right; `bad`: rows in red."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        cells = (f"{cell:>{w}}" if column in right else f"{cell:<{w}}" for column, (cell, w) in enumerate(zip(row, widths, strict=True)))
        yield Text("  " + "  ".join(cells).rstrip(), style="dim" if index == 0 else "red" if index in bad else "")


def _node_row(node: NodeView) -> tuple[str, ...]:
    state = "cordoned" if node.cordoned else "ready" if node.ready else "not ready"
    ours = sum(held.memory_mib or 0.0 for held in node.held)
    return (
        node.name,
        state,
        node.zone or "-",
        "-" if node.cores is None else f"{node.cores:g}",
        "-" if node.memory_mib is None else f"{node.memory_mib / 1024:.1f} GiB",
        f"{ours:.0f} MiB" if node.held else "-",
        ", ".join(f"{h.resource}[{h.layers.replace('-', ':')}]" if h.layers else f"{h.resource} {h.component}" for h in node.held),
    )
