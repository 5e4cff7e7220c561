"""The route's ConfigMap: what the gateway reads (`route.json`), and what we must know of routes before it (`history.json`).

One write holds both, so a cutover and the memory of what it replaced are one.
"""

import json
import math
from collections.abc import Mapping
from datetime import datetime, timedelta

from pydantic import ValidationError

from splitinference.controller.ports import Manifest
from splitinference.core.transition.state import Names, OldRoute, Route
from splitinference.core.values.value import Value
from splitinference_protocol.report import GatewayReport
from splitinference_protocol.route import ASLEEP, STOPPED, NamedAdapter, RouteDocument, RouteError, Verification
from splitinference_protocol.route import asleep as sleeping
from splitinference_protocol.route import withdrawn as stopped
from splitinference_protocol.wire.request import Hop

ROUTE_KEY = "route.json"
HISTORY_KEY = "history.json"
GRACE = timedelta(seconds=5)
"""After the drain time the gateway replays by itself; so much later it has."""
SILENCE = timedelta(seconds=30)
"""Without a gateway nothing is in flight; so much later than the drain time that is believed."""


class Former(Value):
    """A route that was replaced, and when."""

    revision: str
    pipelines: tuple[Names, ...]
    replaced_at: datetime
    drain_seconds: float


class Stored(Value):
    """What the ConfigMap holds. `models`: the Triton model of each segment of the serving route."""

    route: Route
    models: Mapping[str, str]
    former: tuple[Former, ...] = ()


def read_route(config_map: Manifest | None) -> Stored | None:
    """The stored route; None where there is none, or none that can be read (it is written anew once the plan is proven)."""
    data = (config_map or {}).get("data") or {}
    if ROUTE_KEY not in data:
        return None
    try:
        file = RouteDocument.parse(data[ROUTE_KEY])
        former = tuple(Former.model_validate(entry) for entry in json.loads(data.get(HISTORY_KEY) or "[]"))
        route = Route(pipelines=tuple(tuple(hop.segment for hop in pipeline) for pipeline in file.pipelines))
    except (ValidationError, ValueError, TypeError):
        return None
    models = {hop.segment: hop.model for pipeline in file.pipelines for hop in pipeline}
    return Stored(route=route, models=models, former=former)


def cut_over(
    stored: Stored | None,
    route: Route,
    models: Mapping[str, str],
    drain_seconds: float,
    now: datetime,
    *,
    adapters: tuple[NamedAdapter, ...] = (),
) -> Mapping[str, str]:
    """The ConfigMap's data after the cutover to `route`. `models` names the Triton model of each of its segments; `adapters` are what
    clients may name."""
    former = [entry for entry in (stored.former if stored else ()) if now < _over(entry) + SILENCE]
    if stored is not None and stored.route != route:
        former.append(
            Former(revision=stored.route.revision, pipelines=stored.route.pipelines, replaced_at=now, drain_seconds=drain_seconds)
        )
    pipelines = tuple(tuple(Hop(name, models[name]) for name in pipeline) for pipeline in route.pipelines)
    file = RouteDocument(revision=route.revision, pipelines=pipelines, drain_seconds=drain_seconds, adapters=adapters or None)
    kept = [entry.model_dump(mode="json") for entry in former if entry.revision != route.revision]
    return {ROUTE_KEY: file.text(), HISTORY_KEY: json.dumps(kept, sort_keys=True)}


def with_verification(data: Mapping[str, str], verification: Verification | None) -> Mapping[str, str]:
    """The ConfigMap's data with what is checked, or without it; the same data where there is no route that can be read."""
    try:
        document = RouteDocument.parse(data[ROUTE_KEY])
    except (KeyError, RouteError):
        return data
    if document.verification == verification:
        return data
    return {**data, ROUTE_KEY: document.model_copy(update={"verification": verification}).text()}


def with_adapters(data: Mapping[str, str], adapters: tuple[NamedAdapter, ...]) -> Mapping[str, str]:
    """The ConfigMap's data with these adapters; the same data where nothing changes, or there is no route that can be read."""
    try:
        document = RouteDocument.parse(data[ROUTE_KEY])
    except (KeyError, RouteError):
        return data
    if (document.adapters or ()) == adapters or document.revision == STOPPED:
        return data
    return {**data, ROUTE_KEY: document.model_copy(update={"adapters": adapters or None}).text()}


def withdrawn() -> Mapping[str, str]:
    """The ConfigMap's data while nothing may be sent anywhere: sequences leave the route that was, and wait for the next."""
    return {ROUTE_KEY: stopped().text(), HISTORY_KEY: "[]"}


def asleep(wakes_in_seconds: float, hold_seconds: float, adapters: tuple[NamedAdapter, ...] = ()) -> Mapping[str, str]:
    """The ConfigMap's data while the model is unloaded: requests wait for the first pipeline, also those for adapters."""
    # Whole seconds: a figure that changes with each pass would be written with each pass.
    return {ROUTE_KEY: sleeping(math.ceil(wakes_in_seconds), hold_seconds, adapters or None).text(), HISTORY_KEY: "[]"}


def is_asleep(config_map: Manifest | None) -> bool:
    """Whether the ConfigMap holds that."""
    return _revision(config_map) == ASLEEP


def is_withdrawn(config_map: Manifest | None) -> bool:
    """Whether the ConfigMap holds that."""
    return _revision(config_map) == STOPPED


def _revision(config_map: Manifest | None) -> object:
    """The revision that is written; None where none can be read."""
    try:
        return json.loads(((config_map or {}).get("data") or {})[ROUTE_KEY])["revision"]
    except (KeyError, TypeError, ValueError):
        return None


def old_routes(stored: Stored | None, report: GatewayReport | None, gateway_runs: bool, now: datetime) -> tuple[OldRoute, ...]:
    """Routes before the serving one, and whether something is still in flight on them. What is not known counts as in flight."""
    if stored is None:
        return ()
    return tuple(_old(entry, stored.route.revision, report, gateway_runs, now) for entry in stored.former)


def _old(entry: Former, serving: str, report: GatewayReport | None, gateway_runs: bool, now: datetime) -> OldRoute:
    names = frozenset(name for pipeline in entry.pipelines for name in pipeline)
    over = now >= _over(entry)
    if report is None:
        in_flight = gateway_runs or now < _over(entry) + SILENCE
        why = "the gateway does not answer, so its requests in flight are unknown"
    elif report.revision != serving:
        in_flight, why = True, f"the gateway still uses route {report.revision}"
    elif entry.revision in report.routes and report.routes[entry.revision].in_flight > 0:
        in_flight, why = not over, f"{report.routes[entry.revision].in_flight} in flight, replayed at the latest at {_over(entry):%H:%M:%S}"
    else:
        in_flight, why = False, ""
    return OldRoute(revision=entry.revision, names=names, in_flight=in_flight, why=why)


def _over(entry: Former) -> datetime:
    return entry.replaced_at + timedelta(seconds=entry.drain_seconds) + GRACE
