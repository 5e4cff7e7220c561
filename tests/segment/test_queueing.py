"""Who runs next: probes, then decode steps together, then the oldest prefill chunk; nobody waits for ever."""

from dataclasses import dataclass

from splitinference_segment.steps.queueing import FAIR_TURNS, next_turn


@dataclass(frozen=True)
class Waits:
    sequence: str
    tokens: int = 1
    drafted: int = 0


def test_decode_steps_run_together_before_a_prefill_that_came_first() -> None:
    long, a, b = Waits("p", 64), Waits("a"), Waits("b")
    turn = next_turn([long, a, b], max_batch=8, passed=0)
    assert (turn.batch, turn.rest, turn.passed) == ((a, b), (long,), 1)


def test_a_prefill_gets_its_turn_after_a_few_decode_batches() -> None:
    long, a = Waits("p", 64), Waits("a")
    turn = next_turn([a, long], max_batch=8, passed=FAIR_TURNS)
    assert (turn.batch, turn.rest, turn.passed) == ((long,), (a,), 0)


def test_prefills_run_alone_and_in_order() -> None:
    first, second = Waits("p", 64), Waits("q", 3)
    assert next_turn([first, second], max_batch=8, passed=0).batch == (first,)


def test_a_batch_is_never_larger_than_its_limit() -> None:
    steps = [Waits(name) for name in "abcde"]
    turn = next_turn(steps, max_batch=2, passed=0)
    assert (turn.batch, turn.rest) == (tuple(steps[:2]), tuple(steps[2:]))


def test_two_steps_of_one_sequence_are_not_in_one_batch() -> None:
    first, second, other = Waits("a"), Waits("a"), Waits("b")
    turn = next_turn([first, second, other], max_batch=8, passed=0)
    assert turn.batch == (first, other)
    assert turn.rest == (second,)


def test_a_probe_goes_first_and_alone() -> None:
    probe, a = Waits(""), Waits("a")
    turn = next_turn([a, probe], max_batch=8, passed=2)
    assert (turn.batch, turn.rest, turn.passed) == ((probe,), (a,), 2)


def test_a_step_with_drafts_runs_with_other_decode_steps() -> None:
    long, a, b = Waits("p", 64), Waits("a", 5, drafted=4), Waits("b")
    assert next_turn([long, a, b], max_batch=8, passed=0).batch == (a, b)


def test_chunks_of_one_prompt_run_in_order_also_when_the_last_has_one_token() -> None:
    first, last, other = Waits("p", 64), Waits("p"), Waits("b")
    turn = next_turn([first, last, other], max_batch=8, passed=0)
    assert turn.batch == (other,), "not the last chunk, before which the first has to run"
    assert next_turn(turn.rest, max_batch=8, passed=turn.passed).batch == (first,)


def test_prompts_with_many_chunks_here_take_turns() -> None:
    waiting = [*(Waits("p", 64 + i) for i in range(3)), *(Waits("q", 32 + i) for i in range(2))]
    ran, passed, prefilled = [], 0, ""
    while waiting:
        turn = next_turn(waiting, max_batch=8, passed=passed, prefilled=prefilled)
        waiting, passed, prefilled = list(turn.rest), turn.passed, turn.prefilled
        ran += [(step.sequence, step.tokens) for step in turn.batch]
    assert ran == [("p", 64), ("q", 32), ("p", 65), ("q", 33), ("p", 66)]
