"""A plan as an SVG picture: nodes as boxes with how full they are, the pipeline as arrows through them."""

from html import escape
from textwrap import wrap

from splitinference.core.cost.checks.eligible import unusable
from splitinference.core.cost.site import sites
from splitinference.core.planner.explain import UNITS
from splitinference.core.values.cluster import Node, load_in_words
from splitinference.core.values.plan import Plan, Segment, StagePrediction
from splitinference.core.values.problem import Problem

_WIDE, _HIGH, _GAP, _COLUMNS = 230, 96, 60, 4
_LINE, _MOST_LINES = 15, 20
_COLOURS = ("#1f6feb", "#bf5700", "#2da44e", "#8250df", "#cf222e")
_MOST_LEFT = 12


def picture(plan: Plan, problem: Problem) -> str:
    """The picture; nodes of the plan first, then at most a dozen of those left."""
    used = list(dict.fromkeys(name for segment in plan.segments for name in segment.nodes))
    left = [node.name for node in problem.snapshot.nodes if node.name not in used]
    names = [*used, *left[:_MOST_LEFT]]
    texts = {name: _lines(name, plan, problem) for name in names}
    high = _HIGH + _LINE * max((len(lines) - 3 for lines in texts.values() if len(lines) > 3), default=0)
    place = {name: (40 + (i % _COLUMNS) * (_WIDE + _GAP), 70 + (i // _COLUMNS) * (high + _GAP)) for i, name in enumerate(names)}
    width = 40 + min(len(names), _COLUMNS) * (_WIDE + _GAP)
    height = 70 + (-(-len(names) // _COLUMNS)) * (high + _GAP)
    goal = problem.objective.goal
    value = "" if plan.value is None else f"{goal.value} {plan.value:.4g} {UNITS[goal]}".split(" (")[0]
    title = f"{problem.profile.model}: {value} ({'proven best for these figures' if plan.optimal else 'not proven'})"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="context-stroke"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="40" y="36" font-size="18">{escape(title)}</text>',
    ]
    for name in names:
        parts.append(_node(name, (*place[name], high), texts[name], plan, problem))
    stages = iter(plan.prediction.stages if plan.prediction else ())
    for number, pipeline in enumerate(plan.pipelines):
        colour = _COLOURS[number % len(_COLOURS)]
        predicted = [next(stages, None) for _ in pipeline.segments]
        for before, after, stage in zip(pipeline.segments, pipeline.segments[1:], predicted, strict=False):
            for a in before.nodes:
                for b in after.nodes:
                    if a != b:  # inside a node there is no link to draw
                        label = f"{stage.link_ms:.2g} ms" if stage and a == before.node else ""
                        parts.append(_arrow(place[a], place[b], high, colour, label))
    if len(left) > _MOST_LEFT:
        parts.append(f'<text x="40" y="{height - 12}" fill="#57606a">and {len(left) - _MOST_LEFT} more nodes left</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _here(name: str, plan: Plan) -> list[tuple[Segment, StagePrediction | None]]:
    stages = plan.prediction.stages if plan.prediction else ()
    return [(s, stages[i] if i < len(stages) else None) for i, s in enumerate(plan.segments) if name in s.nodes]


def _lines(name: str, plan: Plan, problem: Problem) -> list[str]:
    """What a node's box says: its segments, each with its processor on a line of its own; or why there is none."""
    node = next(n for n in problem.snapshot.nodes if n.name == name)
    lines = []
    for segment, stage in _here(name, plan):
        lines.append(f"layers [{segment.start}, {segment.end})" + (f", {stage.decode_ms:.3g} ms a token" if stage else ""))
        if node.processors:
            lines.extend(wrap(f"on {segment.processor or 'its CPU'}", _WIDE // 7))
    if not lines:
        return _left(node, problem)[:3]
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], f"and {len(lines) - _MOST_LINES + 1} more lines"]


def _node(name: str, at: tuple[int, int, int], lines: list[str], plan: Plan, problem: Problem) -> str:
    x, y, high = at
    node = next(n for n in problem.snapshot.nodes if n.name == name)
    here = _here(name, plan)
    free = sum(site.memory_bytes for site in sites(node))
    taken = sum(stage.memory_bytes for _, stage in here if stage)
    share = min(1.0, taken / free) if free else 0.0
    load = load_in_words(node)
    text = "".join(f'<text x="{x + 10}" y="{y + 38 + _LINE * i}">{escape(line)}</text>' for i, line in enumerate(lines))
    return (
        f'<g><rect x="{x}" y="{y}" width="{_WIDE}" height="{high}" rx="6" fill="{"#ddf4ff" if here else "#f6f8fa"}" stroke="#57606a"/>'
        f'<text x="{x + 10}" y="{y + 20}" font-weight="bold">{escape(name)}</text>{text}'
        f'<rect x="{x + 10}" y="{y + high - 14}" width="{_WIDE - 20}" height="6" fill="#d0d7de"/>'
        f'<rect x="{x + 10}" y="{y + high - 14}" width="{(_WIDE - 20) * share:.0f}" height="6" fill="#1f6feb"/>'
        f'<text x="{x + 10}" y="{y + high - 18}" fill="#57606a" font-size="10">'
        f"{_memory(taken, free)}, {escape(load)}</text></g>"
    )


def _left(node: Node, problem: Problem) -> list[str]:
    """Why no segment may be there, in lines that fit; where it is only not worth it, that there is none."""
    return wrap(unusable(node, problem) or "no segment", _WIDE // 7)


def _memory(taken: int, free: int) -> str:
    size, unit = (2**30, "GiB") if free >= 10 * 2**30 else (2**20, "MiB")
    return f"{taken / size:.0f} of {free / size:.0f} {unit}"


def _arrow(source: tuple[int, int], target: tuple[int, int], high: int, colour: str, label: str) -> str:
    (x1, y1), (x2, y2) = source, target
    if y1 == y2 and x2 > x1:
        ends = (x1 + _WIDE, y1 + high // 2, x2, y2 + high // 2)
    elif y1 == y2:
        ends = (x1, y1 + high // 2 + 12, x2 + _WIDE, y2 + high // 2 + 12)
    else:
        down = y2 > y1
        ends = (x1 + _WIDE // 2, y1 + (high if down else 0), x2 + _WIDE // 2, y2 + (0 if down else high))
    line = f'<line x1="{ends[0]}" y1="{ends[1]}" x2="{ends[2]}" y2="{ends[3]}" stroke="{colour}" stroke-width="2" marker-end="url(#tip)"/>'
    x, y = (ends[0] + ends[2]) // 2, (ends[1] + ends[3]) // 2 - 6
    return line + f'<text x="{x}" y="{y}" fill="{colour}" font-size="10" text-anchor="middle">{label}</text>'
