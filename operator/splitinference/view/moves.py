"""What lies between two plans, run of layers by run of layers."""

from collections.abc import Sequence

from splitinference.view.model import MoveView, PipelineView, SegmentView


def moves(before: Sequence[PipelineView], after: Sequence[PipelineView]) -> tuple[MoveView, ...]:
    """What stays, moves, is created and is deleted, in the order of pipelines and layers. A segment moves if both plans have its layers, in
    the same pipeline, on different nodes; where cuts differ, the old run is deleted and the new one created."""
    found: list[MoveView] = []
    old, new = _by_run(before), _by_run(after)
    for pipeline, start, end in sorted(old.keys() | new.keys()):
        source, target = old.get((pipeline, start, end)), new.get((pipeline, start, end))
        found.append(
            MoveView(
                kind=_kind(source, target),
                pipeline=pipeline,
                start=start,
                end=end,
                source=source.node if source else "",
                target=target.node if target else "",
                weight_mib=_weight(target) if _weight(target) is not None else _weight(source),
            )
        )
    return tuple(found)


def _by_run(pipelines: Sequence[PipelineView]) -> dict[tuple[int, int, int], SegmentView]:
    return {(pipeline.number, s.start, s.end): s for pipeline in pipelines for s in pipeline.segments}


def _kind(source: SegmentView | None, target: SegmentView | None) -> str:
    if source is None or target is None:
        return "create" if source is None else "delete"
    return "stay" if (source.node, source.processor) == (target.node, target.processor) else "move"


def _weight(segment: SegmentView | None) -> float | None:
    return segment.weight_mib if segment else None
