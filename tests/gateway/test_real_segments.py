"""Gateway and three real segments: Triton servers with a real model, as processes on loopback. Runs in images/gateway/Dockerfile.test."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("segment-serve") is None or "SI_TEST_MODEL_PATH" not in os.environ,
    reason="needs segment-serve and a converted model (SI_TEST_MODEL_PATH): images/gateway/Dockerfile.test has both",
)

MODEL = "smollm2"
CUTS = ((0, 12), (12, 22), (22, 32))
OTHER_CUTS = ((0, 8), (8, 32))
QUESTION = "Name three rivers in Europe and say one sentence about each."
TOKENS = 80


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@dataclass
class Segment:
    """One segment's server. Its name and ports stay when it is started again."""

    start: int
    end: int
    ports: list[int]
    addresses: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def name(self) -> str:
        return f"{MODEL}-{self.start}-{self.end}"

    @property
    def hop(self) -> dict[str, str]:
        return {"segment": self.name, "model": f"seg-0123abcd-{self.start}-{self.end}"}

    def serve(self) -> None:
        http, grpc, metrics = map(str, self.ports)
        settings = {
            "SI_SEGMENT": self.name,
            "SI_MODEL_NAME": self.hop["model"],
            "SI_MODEL_PATH": os.environ["SI_TEST_MODEL_PATH"],
            "SI_LAYERS": f"{self.start}:{self.end}",
            "SI_DTYPE": "float32",
            "SI_PEER_PREFIX": MODEL,
            "SI_PEER_ADDRESSES": json.dumps(self.addresses),
            "SI_HTTP_PORT": http,
            "SI_GRPC_PORT": grpc,
            "SI_METRICS_PORT": metrics,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(["segment-serve"], env={**os.environ, **settings}, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        """To the server and all its children."""
        assert self.process is not None
        for process in family(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def kill(self) -> None:
        """As on a lost node: all at once, without a word."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()


def family(process: int) -> list[int]:
    """A process and all its descendants, whatever group they are in."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@dataclass
class Stack:
    """All that runs."""

    url: str
    segments: list[Segment]
    others: list[Segment]  # the same model cut elsewhere; started by the test that wants them
    route_file: Path
    gateway: subprocess.Popen[bytes]

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)

    def replays(self) -> float:
        """How often a sequence was replayed since the gateway was started."""
        return self.counted("replays_total")

    def counted(self, name: str) -> float:
        """The sum of a metric of the gateway over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pattern = re.compile(rf"splitinference_gateway_{name}(\{{.*\}})? ")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if pattern.match(line))

    def route(self, revision: str, segments: list[Segment], drain_seconds: float) -> None:
        """Cut over, and wait until the gateway has seen it."""
        document = {"v": 1, "revision": revision, "pipelines": [[s.hop for s in segments]], "drainSeconds": drain_seconds}
        self.route_file.with_suffix(".new").write_text(json.dumps(document))
        self.route_file.with_suffix(".new").rename(self.route_file)
        wait_for(lambda: self.get("/internal/routes")["revision"] == revision)

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
    made = [Segment(*cut, ports[3 * i : 3 * i + 3], addresses, folder / f"segment-{i}.log") for i, cut in enumerate(cuts)]
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
    }
    with (folder / "gateway.log").open("wb") as log:
        gateway = subprocess.Popen([sys.executable, "-m", "splitinference_gateway"], env={**os.environ, **settings}, stdout=log, stderr=log)
    stack = Stack(f"http://127.0.0.1:{ports[-1]}", segments, others, route_file, gateway)
    try:
        wait_for(lambda: urllib.request.urlopen(f"{stack.url}/readyz", timeout=1).status == 200)
        # The first request waits for the servers to load: replay covers a chain that is not there yet.
        assert "".join(stack.stream("Say hello."))
        yield stack
    finally:
        gateway.terminate()
        for segment in made:
            segment.kill()
        gateway.wait(timeout=90)
        for log in sorted(folder.glob("*.log")):
            sys.stdout.write(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}\n")


def wait_for(true: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if true():
                return
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.1)


@functools.cache
def reference(prompt: str, chat: bool) -> Any:
    command = ["segment-reference", "--model", os.environ["SI_TEST_MODEL_PATH"], "--dtype", "float32", "--prompt", prompt]
    command += ["--max-new-tokens", str(TOKENS), *(["--chat"] if chat else [])]
    return json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout.splitlines()[-1])


def test_the_streamed_text_is_the_unsplit_models(stack: Stack) -> None:
    assert "".join(stack.stream()) == reference(QUESTION, True)["text"]


def test_a_completion_by_curl_is_the_unsplit_models(stack: Stack) -> None:
    prompt = "The capital of France is"
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0})
    command = ["curl", "-sS", "--fail-with-body", f"{stack.url}/v1/completions", "-H", "Content-Type: application/json", "-d", body]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=300).stdout)
    expected = reference(prompt, False)
    assert answer["choices"][0]["text"] == expected["text"]
    assert answer["usage"]["prompt_tokens"] == len(expected["prompt_tokens"])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_segment_killed_in_the_middle_of_a_stream_is_not_seen(stack: Stack, stage: int) -> None:
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
    assert text == reference(QUESTION, True)["text"]
    assert stack.replays() > before
    assert stack.get("/internal/routes")["observed"]["failed"] == 0


def test_a_segment_that_stops_answering_is_named_and_the_text_goes_on(stack: Stack) -> None:
    segment = stack.segments[1]
    text = ""
    failing: dict[str, Any] = {}

    def stop_and_continue() -> None:
        segment.signal(signal.SIGSTOP)
        with contextlib.suppress(AssertionError):
            wait_for(lambda: failing.update(stack.get("/internal/routes")["failing"]) or failing, 60)
        segment.signal(signal.SIGCONT)

    stopping = threading.Thread(target=stop_and_continue)
    for number, piece in enumerate(stack.stream()):
        text += piece
        if number == 20:
            stopping.start()
    stopping.join()
    assert text == reference(QUESTION, True)["text"]
    assert set(failing) == {segment.name}


def test_choices_and_clients_at_once_have_each_their_text(stack: Stack) -> None:
    texts: dict[int, str] = {}
    questions = [QUESTION, "What is two plus two?", QUESTION]
    threads = [threading.Thread(target=lambda i=i, q=q: texts.update({i: "".join(stack.stream(q))})) for i, q in enumerate(questions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts[0] == texts[2] == reference(QUESTION, True)["text"]
    assert texts[1] == reference(questions[1], True)["text"]


def test_a_cutover_to_other_split_points_in_mid_stream_hands_the_kv_over(stack: Stack) -> None:
    for segment in stack.others:
        segment.serve()
    for segment in stack.others:
        probe = ["segment-probe", "5"]
        environment = {**os.environ, "SI_HTTP_PORT": str(segment.ports[0]), "SI_MODEL_NAME": segment.hop["model"]}
        wait_for(lambda e=environment, p=probe: subprocess.run(p, env=e, capture_output=True, check=False).returncode == 0, 300)
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
        assert text == reference(QUESTION, True)["text"]
        assert stack.counted("handovers_total") == number
    assert stack.replays() == replays
    assert stack.counted("handover_bytes_total") > 100_000
    for segment in stack.others:
        segment.kill()


def test_the_segments_hold_nothing_when_all_is_done(stack: Stack) -> None:
    def held() -> float:
        total = 0.0
        for segment in stack.segments:
            with urllib.request.urlopen(f"http://127.0.0.1:{segment.ports[2]}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
            total += sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("splitinference_segment_sequences{"))
        return total

    wait_for(lambda: held() == 0, 10)
    assert stack.get("/internal/routes")["routes"] == {"r1": {"inFlight": 0, "state": "serving"}}


def test_sigterm_lets_a_stream_finish(stack: Stack) -> None:
    text = ""
    for number, piece in enumerate(stack.stream()):
        text += piece
        if number == 10:
            stack.gateway.terminate()
    assert text == reference(QUESTION, True)["text"]
    assert stack.gateway.wait(timeout=30) == 0
