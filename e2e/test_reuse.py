"""Reuse on kind: a question asked again gets the earlier answer, also after a new cut; identical questions share a run."""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from e2e import stack
from e2e.cluster import Cluster, faults
from e2e.scene import NAME, ROOMY_MIB, frozen_sample, workers_of

pytestmark = [pytest.mark.cluster, pytest.mark.long]


@dataclass(frozen=True)
class Answered:
    """One answer, and what its headers say."""

    text: str
    cache: str
    age: int | None


def ask(url: str, question: str, tokens: int = 24, cache: str = "", **more: Any) -> Answered:
    """A chat with temperature 0; raises where the status is none of success."""
    body = {"model": "smollm2-135m-instruct", "messages": [{"role": "user", "content": question}], "max_tokens": tokens, "temperature": 0}
    headers = {"Content-Type": "application/json", **({"Cache-Control": cache} if cache else {})}
    request = urllib.request.Request(f"{url}/chat/completions", json.dumps({**body, **more}).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        age = response.headers.get("Age")
        text = json.loads(response.read())["choices"][0]["message"]["content"]
        return Answered(text, response.headers.get("X-Cache", ""), None if age is None else int(age))


@pytest.fixture(scope="module")
def url(operated: Cluster) -> Iterator[str]:
    """The sample with reuse, Ready, on workers with room for new cuts beside the old ones."""
    body = frozen_sample()
    body["spec"] |= {"reuse": {"scope": "All", "ttl": "30m"}}
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    with workers_of(operated, ROOMY_MIB):
        operated.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        stack.wait_ready(operated, NAME)
        with stack.endpoint(operated, NAME) as found:
            yield found


def test_asked_again_and_nothing_runs(operated: Cluster, url: str) -> None:
    first = ask(url, "What is the capital of France?")
    again = ask(url, "What is the capital of France?", cache="only-if-cached")
    assert (first.cache, again.cache) == ("MISS", "HIT")
    assert first.text == again.text
    assert again.age is not None
    anew = ask(url, "What is the capital of France?", cache="no-cache")
    assert anew.cache == "MISS"
    assert anew.text == first.text, "the model says the same again: temperature 0"


def test_identical_questions_share_a_run(operated: Cluster, url: str) -> None:
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: ask(url, "Why is the sky blue?", 48), range(8)))
    assert len({answer.text for answer in answers}) == 1
    caches = sorted(answer.cache for answer in answers)
    assert caches.count("MISS") == 1, caches
    assert set(caches) <= {"MISS", "JOINED", "HIT"}


def test_a_killed_segment_and_other_cuts_leave_the_answers(operated: Cluster, url: str) -> None:
    before = ask(url, "Name three colours of the rainbow.")
    plan = stack.resource(operated, NAME)["status"]["plan"]["segments"]
    faults.kill_pod(operated.engine(), plan[1]["node"], plan[1]["name"])
    assert ask(url, "Name three colours of the rainbow.", cache="only-if-cached").text == before.text, "while a segment is away"
    segments = {"minSegments": 2, "maxSegments": 2}
    operated.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps({"spec": {"partition": segments}}))

    def recut() -> bool:
        found = stack.resource(operated, NAME)
        return stack.settled(found) and len(stack.placement(found)) == 2

    stack.until(recut, 300, "the model is in two segments", progress=lambda: stack.pods_of(operated, "default"))
    kept = ask(url, "Name three colours of the rainbow.", cache="only-if-cached")
    assert (kept.cache, kept.text) == ("HIT", before.text)
