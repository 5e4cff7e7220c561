"""Which nodes may be used at all: ready, selected, tolerated; and which may hold which layers."""

from collections.abc import Iterable, Mapping, Sequence

from splitinference.core.values.cluster import Node, Taint
from splitinference.core.values.problem import Constraints, Problem, Toleration

_REPELLING = ("NoSchedule", "NoExecute")


def label_words(labels: Mapping[str, str]) -> str:
    """Labels as a user writes them: `a=b, c=d`."""
    return ", ".join(f"{key}={value}" for key, value in sorted(labels.items()))


def unusable(node: Node, problem: Problem) -> str | None:
    """Why no segment may run on `node`, in words; None if it may be used."""
    if not node.ready:
        return "not ready"
    if node.excluded:
        return node.excluded
    bounds = problem.constraints
    for key, value in sorted(bounds.node_selector.items()):
        if node.labels.get(key) != value:
            return f"label {key} is {node.labels.get(key)!r}, the selector requires {value!r}"
    if (taint := repelling(node.taints, bounds.tolerations)) is not None:
        return f"taint {taint.key}={taint.value}:{taint.effect} is not tolerated"
    if problem.counts_power and node.busy_watts <= 0:
        return "its power is not known (busy watts), so its energy is not known either"
    if problem.counts_cost and not node.price_known:
        return "its price is not known (cost per hour)"
    return None


def repelling(taints: Iterable[Taint], tolerations: Sequence[Toleration]) -> Taint | None:
    """The first taint that keeps a pod with these tolerations from its node; None if there is none."""
    return next((taint for taint in taints if taint.effect in _REPELLING and not any(_tolerates(t, taint) for t in tolerations)), None)


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.operator == "Exists":
        return toleration.key in ("", taint.key)
    return toleration.key == taint.key and toleration.value == taint.value


def forbidden(node: Node, layer: int, bounds: Constraints) -> str | None:
    """Why `layer` may not run on `node` by trust or pin, in words; None if it may."""
    for rule in bounds.trust:
        if rule.start <= layer < rule.end and any(node.labels.get(k) != v for k, v in rule.labels.items()):
            wanted = label_words(rule.labels)
            return f"trust: layers {rule.start} to {rule.end} need {wanted}{f' ({rule.because})' if rule.because else ''}"
    for pin in bounds.pins:
        if pin.start <= layer < pin.end and pin.node != node.name:
            return f"pin: layers {pin.start} to {pin.end} must run on {pin.node}"
    return None
