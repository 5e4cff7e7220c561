"""What is a reason to look, and what is not."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import kopf

from splitinference.controller.runtime.handlers import Wakes, register, resource_content
from splitinference.controller.runtime.workqueue import Ended, Pass, Passes


def test_the_status_that_passes_write_is_none():
    body = {"metadata": {"generation": 1, "resourceVersion": "1"}, "status": {"segments": "1/2"}}
    later = {"metadata": {"generation": 1, "resourceVersion": "9"}, "status": {"segments": "2/2"}}
    assert resource_content(body) == resource_content(later)
    assert resource_content({"metadata": {"generation": 2}}) != resource_content(body)
    assert resource_content({"metadata": {"generation": 1, "deletionTimestamp": "now"}}) != resource_content(body)


def a_body(name: str = "chat", generation: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": generation}}


def a_pod(instance: str, **labels: str) -> dict[str, Any]:
    about = {"app.kubernetes.io/managed-by": "splitinference", "app.kubernetes.io/instance": instance, **labels}
    return {"metadata": {"name": "p", "namespace": "team", "labels": about}}


@dataclass
class Woken(Passes):
    """Notes what is woken, and makes no pass."""

    notes: list[object] = field(default_factory=list)

    def wake(self, key: tuple[str, str]) -> None:
        self.notes.append(key)

    def wake_known(self, key: tuple[str, str]) -> None:
        self.notes.append(("if known", *key))

    def wake_all(self) -> None:
        self.notes.append("all")


def test_each_change_wakes_the_passes_that_it_concerns():
    woken = Woken()
    wakes = Wakes(woken)
    wakes.changed("SplitInference", a_body(), False)
    wakes.changed("SplitInference", {**a_body(), "status": {"segments": "1/2"}}, False)
    wakes.changed("SplitInference", a_body(generation=2), False)
    wakes.changed("SplitInference", a_body(generation=2), True)
    wakes.changed("SplitInference", a_body(generation=2), False)
    assert woken.notes == [("team", "chat"), ("team", "chat"), ("if known", "team", "chat"), ("team", "chat")]
    woken.notes.clear()
    wakes.changed("Pod", a_pod("chat"), False)
    wakes.changed("Pod", a_pod("chat"), True)
    wakes.changed("Pod", a_pod("chat", **{"app.kubernetes.io/managed-by": "Helm"}), False)
    wakes.changed("Pod", {"metadata": {"name": "p", "namespace": "team"}}, False)
    wakes.changed("Node", {"metadata": {"name": "a"}}, False)
    assert woken.notes == [("if known", "team", "chat"), ("if known", "team", "chat"), "all"]


def test_kopf_watches_nothing_needs_no_finalizer_and_keeps_no_progress():
    registry = kopf.OperatorRegistry()
    register(registry, Woken(), lambda _: None)
    for handlers in (registry._watching, registry._spawning, registry._changing, registry._indexing, registry._webhooks):
        assert not handlers.get_all_handlers()
    settings = kopf.OperatorSettings()
    asyncio.run(started(registry, settings))
    assert settings.scanning.disabled, "nor CRDs or namespaces, for which it would need rights"
    assert not settings.posting.enabled


async def started(registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
    (startup,) = (found for found in registry._activities.get_all_handlers() if found.activity is not None and "start" in str(found.id))
    await startup.fn(settings=settings)


def test_a_change_in_another_thread_wakes_passes_until_the_loop_ends():
    told: list[Callable[[str, Any, bool], None]] = []
    ended: list[tuple[tuple[str, str], Ended]] = []
    there: set[str] = set()

    def one_pass(key: tuple[str, str]) -> Pass:
        return Pass(Ended.DONE if key[1] in there else Ended.GONE)

    async def scenario(threads: ThreadPoolExecutor) -> None:
        registry = kopf.OperatorRegistry()
        passes = Passes(one_pass, threads, 60, 60, lambda key, done, seconds: ended.append((key, done.ended)))
        register(registry, passes, told.append)
        await started(registry, kopf.OperatorSettings())

        async def expect(*wanted: tuple[tuple[str, str], Ended]) -> None:
            async with asyncio.timeout(30):
                while not set(wanted) <= set(ended):
                    await asyncio.sleep(0.01)
            ended.clear()

        for name in ("chat", "code"):
            there.add(name)
            await asyncio.to_thread(told[0], "SplitInference", a_body(name), False)
        await expect((("team", "chat"), Ended.DONE), (("team", "code"), Ended.DONE))
        await asyncio.to_thread(told[0], "Node", {"metadata": {"name": "a"}}, False)
        await expect((("team", "chat"), Ended.DONE), (("team", "code"), Ended.DONE))
        there.discard("chat")
        await asyncio.to_thread(told[0], "SplitInference", a_body(), True)
        await expect((("team", "chat"), Ended.GONE))
        await passes.stop()

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(scenario(threads))
    told[0]("Node", {"metadata": {"name": "a"}}, False)  # the loop has ended: nobody to wake, and nothing breaks
