"""Dry run of a transition: the same steps as the real one, on a model in which every started segment succeeds."""

from splitinference.core.transition.state import Observed, ObservedSegment, Phase, Target
from splitinference.core.transition.steps import Action, Blocked, CreateSegment, Cutover, DeleteSegment, Done, Steps, Strategy, next_steps

_MOST_STEPS = 200


def dry_run(target: Target, observed: Observed, strategy: Strategy) -> Done | Blocked:
    """How the transition ends if nothing fails and every route drains."""
    for _ in range(_MOST_STEPS):
        result = next_steps(target, observed, strategy)
        if not isinstance(result, Steps):
            return result
        for action in result.actions:
            observed = _after(action, observed)
        observed = _settled(observed)
    return Blocked(why=f"the transition does not end within {_MOST_STEPS} steps")


def _after(action: Action, observed: Observed) -> Observed:
    segments = dict(observed.segments)
    match action:
        case CreateSegment(segment=segment):
            segments[segment.name] = ObservedSegment(**segment.model_dump(), phase=Phase.STARTING)
        case DeleteSegment(name=name):
            segments.pop(name, None)
        case Cutover(route=route):
            return observed.model_copy(update={"serving": route})
    return observed.model_copy(update={"segments": segments})


def _settled(observed: Observed) -> Observed:
    """Starting segments are proven, leaving ones are gone, and old routes have drained."""
    segments = {
        name: segment.model_copy(update={"phase": Phase.PROVEN}) if segment.phase in (Phase.STARTING, Phase.READY) else segment
        for name, segment in observed.segments.items()
        if segment.phase is not Phase.LEAVING
    }
    return observed.model_copy(update={"segments": segments, "old_routes": ()})
