"""Steps on the worker and on the thread that brings them: the same results, never two at once."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from splitinference_segment.execution import Execution, Result, Step
from splitinference_segment.kv import KvLimits, KvTable
from splitinference_segment.layers import Layers
from splitinference_segment.protocol import OVERLOADED, Request, SegmentError

COUNT = 12
LONG_S = 60.0


class Stage:
    """A whole model behind an execution; says which thread ran each step, and how many ran at once."""

    def __init__(self, folder: Path) -> None:
        self.layers = Layers(folder, 0, 7, torch.float32)
        table = KvTable(self.layers.kv_shape, KvLimits(64, 1 << 26, 128, 60.0))
        self.execution = Execution(self.layers, table, threads=1, max_batch=8, gather_s=0.005)
        self.threads: list[str] = []

    def submit(self, sequence: str, position: int, tokens: list[int], *, may_wait: bool) -> "SimpleQueue[Result | SegmentError]":
        answers: SimpleQueue[Result | SegmentError] = SimpleQueue()

        def done(result: Result | SegmentError) -> None:
            self.threads.append(threading.current_thread().name)
            answers.put(result)

        request = Request(op="step", sequence=sequence, position=position, sample=True)
        self.execution.submit(Step(request, torch.tensor(tokens), 0.0, float("inf"), done), may_wait=may_wait)
        return answers

    def generate(self, sequence: str, prompt: list[int], *, may_wait: bool) -> list[int]:
        tokens, held = list(prompt), 0
        for _ in range(COUNT):
            result = self.submit(sequence, held, tokens[held:], may_wait=may_wait).get(timeout=LONG_S)
            assert isinstance(result, Result), result
            assert result.choice is not None
            held = len(tokens)
            tokens.append(result.choice.token)
        return tokens[len(prompt) :]


@pytest.fixture
def stage(models: dict[str, Path]) -> Iterator[Stage]:
    made = Stage(models["llama"])
    yield made
    made.execution.stop()


def test_a_sequence_that_is_alone_decodes_on_the_thread_that_brings_it(stage: Stage, prompt: list[int]) -> None:
    here = threading.current_thread().name
    apart = stage.generate("a", prompt, may_wait=False)
    assert set(stage.threads) == {"execution"}
    stage.execution.forget("a")
    stage.threads.clear()
    assert stage.generate("b", prompt, may_wait=True) == apart
    assert stage.threads == ["execution", *[here] * (COUNT - 1)], "a prefill may take long, and goes to the worker"


def test_with_another_sequence_under_way_steps_go_to_the_worker_that_batches_them(stage: Stage, prompt: list[int]) -> None:
    stage.generate("other", prompt, may_wait=True)
    stage.threads.clear()
    stage.generate("a", prompt, may_wait=True)
    assert set(stage.threads) == {"execution"}


def test_sequences_from_several_threads_at_once_get_what_they_get_alone(stage: Stage, prompt: list[int]) -> None:
    prompts = [prompt[i:] for i in range(5)]
    expected = []
    for own in prompts:
        expected.append(stage.generate("s", own, may_wait=True))
        stage.execution.forget("s")
    found: dict[int, list[int]] = {}

    def run(number: int) -> None:
        for turn in range(3):
            found[number] = stage.generate(f"{number}-{turn}", prompts[number], may_wait=True)
            stage.execution.forget(f"{number}-{turn}")

    runners = [threading.Thread(target=run, args=(number,)) for number in range(5)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join(LONG_S)
    assert [found[number] for number in range(5)] == expected


def test_what_cannot_run_is_answered_and_the_next_step_runs(stage: Stage, prompt: list[int]) -> None:
    for may_wait in (True, False):
        lost = stage.submit("nobody", 5, [1], may_wait=may_wait).get(timeout=LONG_S)
        assert isinstance(lost, SegmentError)
        assert lost.code == "kv_missing"
    assert len(stage.generate("a", prompt, may_wait=True)) == COUNT


def test_a_stage_that_stops_refuses_steps_on_any_thread(models: dict[str, Path], prompt: list[int]) -> None:
    stage = Stage(models["llama"])
    stage.execution.stop()
    for may_wait, tokens in itertools.product((True, False), ([1], prompt)):
        with pytest.raises(SegmentError) as refused:
            stage.submit("a", len(tokens), tokens, may_wait=may_wait)
        assert refused.value.code == OVERLOADED
