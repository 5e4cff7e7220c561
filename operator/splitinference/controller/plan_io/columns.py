"""Figures of a resource's status: what was observed, and what columns of `kubectl get` show."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from splitinference.controller.api.conditions import stamp
from splitinference.core.transition.state import Route
from splitinference.core.values.plan import Prediction
from splitinference_protocol.report import ObservedTraffic

_OBSERVED_EVERY_SECONDS = 15.0


def observed(before: Mapping[str, Any], traffic: ObservedTraffic | None, revision: str, at: datetime) -> dict[str, Any]:
    """status.observed: renewed every 15 seconds while there are requests; figures of another revision are not kept."""
    kept = dict(before) if before.get("revision") == revision else {}
    if traffic is None or not traffic.requests or 0 <= _age(kept, at) < _OBSERVED_EVERY_SECONDS:
        return kept
    return {
        "revision": revision,
        "time": stamp(at),
        "windowSeconds": traffic.window_seconds,
        "requests": traffic.requests,
        "failed": traffic.failed,
        "replays": traffic.replays,
        "timeToFirstTokenMs": traffic.time_to_first_token_ms.model_dump(exclude_none=True),
        "timePerOutputTokenMs": traffic.time_per_output_token_ms.model_dump(exclude_none=True),
        **traffic.model_dump(by_alias=True, exclude_none=True, include={"tokens_per_second", "kv_reserved"}),
        "stages": {name: times.model_dump(by_alias=True, exclude_none=True) for name, times in sorted(traffic.stages.items())},
    }


def _age(written: Mapping[str, Any], at: datetime) -> float:
    try:
        return (at - datetime.fromisoformat(str(written["time"]))).total_seconds()
    except (KeyError, TypeError, ValueError):
        return float("inf")


def latency(figures: Mapping[str, Any], output_tokens: int) -> str:
    """Observed latency of one request of the workload, in the median; empty while nothing was seen. A single output is the first one."""
    first = (figures.get("timeToFirstTokenMs") or {}).get("p50")
    each = 0.0 if output_tokens == 1 else (figures.get("timePerOutputTokenMs") or {}).get("p50")
    if first is None or each is None:
        return ""
    return duration(first + (output_tokens - 1) * each)


def duration(milliseconds: float) -> str:
    """For a column: 840ms, 1.9s, 75s."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f}ms"
    return f"{milliseconds / 1000:.1f}s" if milliseconds < 10_000 else f"{milliseconds / 1000:.0f}s"


def spent_of(prediction: Prediction) -> str:
    """For a column: 2.4/h, 180 W; what is not known is left out."""
    cost, watts = prediction.cost_per_hour, prediction.watts
    return ", ".join([*([f"{cost:.4g}/h"] if cost else []), *([f"{watts:.4g} W"] if watts else [])])


def nodes(route: Route | None, where: Mapping[str, str]) -> str:
    """Nodes of the route, stage by stage; pipelines apart by a bar."""
    if route is None:
        return ""
    return " | ".join(",".join(where.get(name, "?") for name in pipeline) for pipeline in route.pipelines)
