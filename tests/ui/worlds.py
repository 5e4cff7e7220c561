"""States of clusters that the page is shown: many nodes, hostile texts, nothing at all."""

from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

from splitinference.simulation.traces.synthetic import GENERATORS
from splitinference.ui.origins.simulated import Simulated
from splitinference.ui.page.document import Document
from tests.controller.stories import serving, small
from tests.controller.world import NAMESPACE, World, a_body
from tests.ui.pages import document_from

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = f"{NAMESPACE}/chat"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'`${alert(3)}"
EMPTY = Document(read=NOW)


def simulated(name: str = "utilization-step", hours: float | None = None) -> Simulated:
    """A simulation whose time passes when a test says so."""
    generator = GENERATORS[name]
    return Simulated(generator.make(generator.nodes, (hours or generator.hours) * 3600, 1), speed=0)


@cache
def served() -> Document:
    """One model on two of three nodes."""
    return document_from(serving()[0])


def never_planned() -> Document:
    """A resource that no operator has looked at."""
    world = World(small("a", "b"))
    world.add(a_body())
    return document_from(world)


def many_nodes(count: int = 1000, resources: int = 120) -> Document:
    """A large cluster: nodes of all loads, some not ready, and many models."""
    document = served()
    template = {**document.nodes["a"], "held": [], "oursMib": 0, "freeMib": 246}
    nodes = {}
    for number in range(count):
        name = f"node-{number:04d}"
        load = None if number % 37 == 0 else round((number * 7919 % 100) / 100, 2)
        nodes[name] = {**template, "name": name, "zone": f"zone-{number % 8}", "ready": number % 53 != 1, "usedByOthers": load}
    item = document.resources[KEY]
    found = {}
    for number in range(resources):
        name = f"model-{number:03d}"
        places = [f"node-{(number * 7 + stage * 11) % count:04d}" for stage in range(2)]
        found[f"{NAMESPACE}/{name}"] = {**placed(item, places), "name": name, "key": f"{NAMESPACE}/{name}"}
        for place, segment in zip(places, item["plan"]["pipelines"][0]["segments"], strict=True):
            held = {"namespace": NAMESPACE, "resource": name, "segment": "s", "component": "segment",
                    "layers": f"{segment['start']}-{segment['end']}", "memory_mib": 220.0}  # fmt: skip
            nodes[place] = {**nodes[place], "held": [*nodes[place]["held"], held], "oursMib": 220, "freeMib": 26}
    return replace(document, nodes=nodes, resources=found)


def placed(item: Any, places: list[str]) -> dict[str, Any]:
    """The item with its segments on these nodes."""
    (pipeline,) = item["plan"]["pipelines"]
    segments = [{**segment, "node": place} for segment, place in zip(pipeline["segments"], places, strict=True)]
    return {**item, "plan": {**item["plan"], "pipelines": [{**pipeline, "segments": segments}]}}


def hostile() -> Document:
    """Every text that somebody else may write is one that attacks."""
    document = served()
    item = placed(document.resources[KEY], [HOSTILE, HOSTILE + "2"])
    decision = {"time": HOSTILE, "transition": HOSTILE, "reason": HOSTILE, "message": HOSTILE, "revision": HOSTILE, "outcome": {}}
    condition = {"kind": "Ready", "status": "False", "reason": HOSTILE, "message": HOSTILE, "since": "", "good": False}
    item = {
        **item, "name": HOSTILE, "model": HOSTILE, "mode": HOSTILE, "decisions": [decision], "conditions": [condition], "steps": [HOSTILE],
        "slo": {HOSTILE: HOSTILE}, "plan": {**item["plan"], "explanation": [HOSTILE]}, "proven": HOSTILE, "key": f"{NAMESPACE}/{HOSTILE}",
    }  # fmt: skip
    held = [{"namespace": HOSTILE, "resource": HOSTILE, "segment": HOSTILE, "component": HOSTILE, "layers": HOSTILE, "memory_mib": 1.0}]
    nodes = {
        name: {**document.nodes["a"], "name": name, "zone": HOSTILE, "excluded": HOSTILE, "held": held} for name in (HOSTILE, HOSTILE + "2")
    }
    link = {"source": HOSTILE, "target": HOSTILE, "mbps": 1.0, "rttMs": 1.0}
    return replace(document, nodes=nodes, resources={f"{NAMESPACE}/{HOSTILE}": item}, links={HOSTILE: link}, notes=(HOSTILE,))
