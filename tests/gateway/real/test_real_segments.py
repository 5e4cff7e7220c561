"""Gateway and three real segments: Triton servers with a real model, as processes on loopback. Runs in images/gateway/Dockerfile.test."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.real_segments import Inside, Segment, gateway, wait_for
from tests.segment.host import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("segment-serve") is None or "SI_TEST_MODEL_PATH" not in os.environ,
    reason="needs segment-serve and a converted model (SI_TEST_MODEL_PATH): images/gateway/Dockerfile.test has both",
)

MODEL = "smollm2"
CUTS = ((0, 12), (12, 22), (22, 32))
OTHER_CUTS = ((0, 8), (8, 32))
QUESTION = "Name three rivers in Europe and say one sentence about each."
TOKENS = 48


@dataclass
class Stack:
    """All that runs."""

    url: str
    segments: list[Segment]
    others: list[Segment]  # the same model cut elsewhere; started by the test that wants them
    route_file: Path
    gateway: subprocess.Popen[bytes]
    inside: Inside

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600)

    def routes(self) -> Any:
        """What the gateway tells the operator."""
        return self.inside.routes()

    def replays(self) -> float:
        """How often a sequence was replayed since the gateway was started."""
        return self.counted("replays_total")

    def counted(self, name: str) -> float:
        """The sum of a metric of the gateway over its labels."""
        lines = self.inside.exposition().splitlines()
        pattern = re.compile(rf"splitinference_gateway_{re.escape(name)}(\{{.*\}})? ")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if pattern.match(line))

    def route(self, revision: str, segments: list[Segment], drain_seconds: float) -> None:
        """Cut over, and wait until the gateway has seen it."""
        document = {"v": 1, "revision": revision, "pipelines": [[s.hop for s in segments]], "drainSeconds": drain_seconds}
        self.route_file.with_suffix(".new").write_text(json.dumps(document))
        self.route_file.with_suffix(".new").rename(self.route_file)
        wait_for(lambda: self.routes()["revision"] == revision)

    def stream(self, question: str = QUESTION) -> Iterator[str]:
        with self.client as client:
            chunks = client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": question}], max_tokens=TOKENS, temperature=0, stream=True
            )
            for chunk in chunks:
                yield chunk.choices[0].delta.content or ""


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    cuts = CUTS + OTHER_CUTS
    ports = free_ports(3 * len(cuts) + 1)
    addresses = {f"{MODEL}-{start}-{end}": f"127.0.0.1:{ports[3 * i + 1]}" for i, (start, end) in enumerate(cuts)}
    made = [Segment(MODEL, *cut, ports[3 * i : 3 * i + 3], addresses, folder / f"segment-{i}.log") for i, cut in enumerate(cuts)]
    segments, others = made[: len(CUTS)], made[len(CUTS) :]
    for segment in segments:
        segment.serve()
    route_file = folder / "route.json"
    route_file.write_text(json.dumps({"v": 1, "revision": "r1", "pipelines": [[s.hop for s in segments]], "drainSeconds": 1}))
    settings = {
        "SI_MODEL_ID": MODEL,
        "SI_MODEL_PATH": os.environ["SI_TEST_MODEL_PATH"],
        "SI_ROUTE_FILE": str(route_file),
        "SI_PEER_ADDRESSES": json.dumps(addresses),
        "SI_PORT": str(ports[-1]),
        "SI_MAX_CONCURRENT_SEQUENCES": "4",
        "SI_REPLAY_SECONDS": "300",  # a server that loads torch on a busy machine takes its time
        **(inside := Inside.of(folder)).settings,
    }
    url = f"http://127.0.0.1:{ports[-1]}"
    with gateway(settings, folder, url, made) as process:
        stack = Stack(url, segments, others, route_file, process, inside)
        # The first request waits for the servers to load: replay covers a chain that is not there yet.
        assert "".join(stack.stream("Say hello."))
        yield stack


class Reference:
    """The unsplit model: one process that answers prompt after prompt."""

    def __init__(self, *options: str) -> None:
        command = ["segment-reference", "--model", os.environ["SI_TEST_MODEL_PATH"], "--dtype", "float32", "--lines", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._known: dict[str, Any] = {}

    def __call__(self, prompt: str) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if prompt not in self._known:
            self._process.stdin.write(json.dumps({"prompt": prompt, "max_new_tokens": TOKENS}) + "\n")
            self._process.stdin.flush()
            self._known[prompt] = json.loads(self._process.stdout.readline())
        return self._known[prompt]

    def end(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module")
def unsplit() -> Iterator[Reference]:
    """Of a text."""
    reference = Reference()
    yield reference
    reference.end()


@pytest.fixture(scope="module")
def unsplit_chat() -> Iterator[Reference]:
    """Of a user's message."""
    reference = Reference("--chat")
    yield reference
    reference.end()


def test_the_streamed_text_is_the_unsplit_models(stack: Stack, unsplit_chat: Reference) -> None:
    assert "".join(stack.stream()) == unsplit_chat(QUESTION)["text"]


def test_a_completion_by_curl_is_the_unsplit_models(stack: Stack, unsplit: Reference) -> None:
    prompt = "The capital of France is"
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0})
    command = ["curl", "-sS", "--fail-with-body", f"{stack.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)
    expected = unsplit(prompt)
    assert answer["choices"][0]["text"] == expected["text"]
    assert answer["usage"]["prompt_tokens"] == len(expected["prompt_tokens"])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_segment_killed_in_the_middle_of_a_stream_is_not_seen(stack: Stack, unsplit_chat: Reference, stage: int) -> None:
    segment = stack.segments[stage]
    before = stack.replays()
    text, longest, last = "", 0.0, time.monotonic()
    restarting: threading.Thread | None = None
    for number, piece in enumerate(stack.stream()):
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        text += piece
        if number == 25:
            segment.kill()
            restarting = threading.Thread(target=segment.serve)
            restarting.start()
    assert restarting is not None
    restarting.join()
    sys.stdout.write(f"stage {stage}: longest gap between pieces {longest:.1f} s\n")
    assert text == unsplit_chat(QUESTION)["text"]
    assert stack.replays() > before
    assert stack.routes()["observed"]["failed"] == 0


def test_a_segment_that_stops_answering_is_named_and_the_text_goes_on(stack: Stack, unsplit_chat: Reference) -> None:
    segment = stack.segments[1]
    text = ""
    failing: dict[str, Any] = {}

    def stop_and_continue() -> None:
        segment.signal(signal.SIGSTOP)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: failing.update(stack.routes()["failing"]) or failing, 60)
        segment.signal(signal.SIGCONT)

    stopping = threading.Thread(target=stop_and_continue)
    for number, piece in enumerate(stack.stream()):
        text += piece
        if number == 20:
            stopping.start()
    stopping.join()
    assert text == unsplit_chat(QUESTION)["text"]
    assert set(failing) == {segment.name}


def test_choices_and_clients_at_once_have_each_their_text(stack: Stack, unsplit_chat: Reference) -> None:
    texts: dict[int, str] = {}
    questions = [QUESTION, "What is two plus two?", QUESTION]
    threads = [threading.Thread(target=lambda i=i, q=q: texts.update({i: "".join(stack.stream(q))})) for i, q in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0] == texts[2] == unsplit_chat(QUESTION)["text"]
    assert texts[1] == unsplit_chat(questions[1])["text"]


def test_a_prompt_that_begins_as_an_earlier_one_reuses_its_kv_and_gets_the_unsplit_models_text(stack: Stack, unsplit: Reference) -> None:
    beginning = "The capital of France is Paris. The capital of Spain is Madrid. " * 8
    texts, before = {}, stack.counted("prefix_reused_tokens_total")
    for ending in ("The capital of Italy is", "The longest river of Germany is"):
        with stack.client as client:
            answer = client.completions.create(model=MODEL, prompt=beginning + ending, max_tokens=TOKENS, temperature=0)
        texts[ending] = answer.choices[0].text
    assert stack.counted("prefix_reused_tokens_total") - before >= 64
    assert stack.counted('replays_total{reason="prefix_missing"}') == 0
    assert texts == {ending: unsplit(beginning + ending)["text"] for ending in texts}


def test_a_cutover_to_other_split_points_in_mid_stream_hands_the_kv_over(stack: Stack, unsplit_chat: Reference) -> None:
    for segment in stack.others:
        segment.serve()
    for segment in stack.others:
        wait_for(segment.ready, 300)
    replays = stack.replays()
    for revision, segments, number in (("other", stack.others, 1), ("r1", stack.segments, 2)):
        text, longest, last = "", 0.0, time.monotonic()
        for count, piece in enumerate(stack.stream()):
            now = time.monotonic()
            longest, last = max(longest, now - last) if count else 0.0, now
            text += piece
            if count == 25:
                stack.route(revision, segments, drain_seconds=0.5)
                last = time.monotonic()
        sys.stdout.write(f"to {revision}: longest gap between pieces {longest:.2f} s\n")
        assert text == unsplit_chat(QUESTION)["text"]
        assert stack.counted("handovers_total") == number
    assert stack.replays() == replays
    assert stack.counted("handover_bytes_total") > 100_000
    for segment in stack.others:
        segment.kill()


def test_the_segments_hold_nothing_when_all_is_done(stack: Stack) -> None:
    wait_for(lambda: sum(segment.measured("sequences") for segment in stack.segments) == 0, 10)
    assert stack.routes()["routes"] == {"r1": {"inFlight": 0, "state": "serving"}}


def test_sigterm_lets_a_stream_finish(stack: Stack, unsplit_chat: Reference) -> None:
    text = ""
    for number, piece in enumerate(stack.stream()):
        text += piece
        if number == 10:
            stack.gateway.terminate()
    assert text == unsplit_chat(QUESTION)["text"]
    assert stack.gateway.wait(timeout=30) == 0
