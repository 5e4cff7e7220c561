"""What is a reason to look, and what is not."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import kopf

from splitinference.controller.runtime.handlers import register, resource_content
from splitinference.controller.runtime.workqueue import Ended, Pass, Passes


def test_the_status_that_passes_write_is_none():
    body = {"metadata": {"generation": 1, "resourceVersion": "1"}, "status": {"segments": "1/2"}}
    later = {"metadata": {"generation": 1, "resourceVersion": "9"}, "status": {"segments": "2/2"}}
    assert resource_content(body) == resource_content(later)
    assert resource_content({"metadata": {"generation": 2}}) != resource_content(body)
    assert resource_content({"metadata": {"generation": 1, "deletionTimestamp": "now"}}) != resource_content(body)


def test_no_handler_needs_a_finalizer_or_keeps_progress_on_the_resource():
    registry = kopf.OperatorRegistry()
    register(registry, Passes(lambda key: Pass, None, 1, 1, lambda *_: None), lambda *_: None, lambda _: None)  # type: ignore[arg-type, return-value]
    assert registry._watching.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._changing.get_all_handlers()


def test_a_pass_reads_what_woke_it():
    """Its own watch may be behind: a resource that it does not find is taken to be gone, and never looked at again."""
    known: set[str] = set()
    ended: list[Ended] = []

    def one_pass(key: tuple[str, str]) -> Pass:
        return Pass(Ended.DONE if key[1] in known else Ended.GONE)

    def noticed(kind: str, thing: Any, gone: bool) -> None:
        (known.discard if gone else known.add)(thing["metadata"]["name"])

    async def scenario(threads: ThreadPoolExecutor) -> None:
        registry = kopf.OperatorRegistry()
        passes = Passes(one_pass, threads, 60, 60, lambda key, done, seconds: ended.append(done.ended))
        register(registry, passes, noticed, lambda _: None)
        (changed,) = (found for found in registry._watching.get_all_handlers() if "resource_changed" in str(found.id))
        body = {"metadata": {"name": "chat", "namespace": "team", "uid": "1", "generation": 1}}
        for kind, then in (("ADDED", Ended.DONE), ("DELETED", Ended.GONE)):
            await changed.fn(type=kind, body=kopf.Body(body), namespace="team", name="chat")
            async with asyncio.timeout(5):
                while then not in ended:
                    await asyncio.sleep(0.01)
        assert ended == [Ended.DONE, Ended.GONE]
        await passes.stop()

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(scenario(threads))


def test_a_changed_node_wakes_all_passes_from_another_thread():
    passed: list[tuple[str, str]] = []
    waiting: list[Callable[[], None]] = []

    def one_pass(key: tuple[str, str]) -> Pass:
        passed.append(key)
        return Pass(Ended.DONE)

    async def scenario(threads: ThreadPoolExecutor) -> None:
        registry = kopf.OperatorRegistry()
        passes = Passes(one_pass, threads, 60, 60, lambda *_: None)
        register(registry, passes, lambda *_: None, waiting.append)
        (startup,) = (found for found in registry._activities.get_all_handlers() if "configure" in str(found.id))
        await startup.fn(settings=kopf.OperatorSettings())
        keys = {("team", "chat"), ("team", "code")}
        for key in keys:
            passes.wake(key)
        async with asyncio.timeout(5):
            while set(passed) != keys:
                await asyncio.sleep(0.01)
            passed.clear()
            await asyncio.to_thread(waiting[0])
            while set(passed) != keys:
                await asyncio.sleep(0.01)
        await passes.stop()

    with ThreadPoolExecutor(1) as threads:
        asyncio.run(scenario(threads))
    waiting[0]()  # the loop has ended: nobody to wake, and nothing breaks
