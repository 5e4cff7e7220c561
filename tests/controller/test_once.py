"""What a pass works out, it works out once: specifications are validated, what is observed is put together, and next steps are taken."""

from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from splitinference.controller.api import spec
from splitinference.controller.reconcile import in_force, one_pass
from splitinference.controller.reconcile.planning import gather, plan_pass
from tests.controller.stories import serving, small
from tests.controller.world import Operator, World, a_body


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each was called, by its name."""
    found: Counter[str] = Counter()

    def count(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def call(*given: Any, **more: Any) -> Any:
            found[name] += 1
            return real(*given, **more)

        monkeypatch.setattr(module, name, call)

    count(spec, "read_spec")
    count(gather, "observed_of")
    count(plan_pass, "next_steps")
    count(in_force, "read_plan")
    count(in_force, "build")
    count(one_pass, "build")
    return found


def test_a_pass_at_rest_reads_nothing_again(counted: Counter[str]):
    world, operator = serving()
    world.step()
    operator.look()
    counted.clear()
    for _ in range(3):
        world.step()
        operator.look()
        assert counted == {"observed_of": 1, "next_steps": 1}
        counted.clear()


def test_a_restarted_operator_reads_the_specification_once_for_resource_and_plan(counted: Counter[str]):
    world, _ = serving()
    counted.clear()
    Operator(world).look()
    assert counted == {"read_spec": 1, "read_plan": 1, "build": 1, "observed_of": 1, "next_steps": 1}


def test_a_pass_that_adopts_a_plan_looks_at_each_course_once(counted: Counter[str]):
    world = World(small("a", "b", "c"))
    world.add(a_body())
    operator = Operator(world)
    operator.look()
    while "plan" not in world.status():
        counted.clear()
        world.step()
        operator.look()
    assert (counted["read_spec"], counted["observed_of"]) == (0, 1), "the pass before has read the specification"
    assert counted["next_steps"] == 1, "there was no plan before"
    assert counted["build"] == 1, "segments are named once, for the rehearsal and for the walk"


def test_another_specification_is_read_once_and_so_is_that_of_the_plan(counted: Counter[str]):
    world, operator = serving(small("a", "b", "c", mib=700))
    world.now += timedelta(seconds=120)
    world.change(segments={"memoryMarginPercent": 20})
    counted.clear()
    operator.look()
    assert counted["read_spec"] == 1, "the one of the plan is known"
    assert counted["observed_of"] == 1
    assert counted["next_steps"] == 2, "towards the plan of before, and towards the new one"


def test_a_pass_during_a_move_works_it_out_once(counted: Counter[str]):
    world, operator = serving(small("a", "b", "c", mib=700))
    world.change(partition={"minSegments": 3})
    operator.look()
    moving = 0
    while world.condition("Progressing")["status"] == "True":
        world.step()
        counted.clear()
        operator.look()
        moving += 1
        assert (counted["read_spec"], counted["observed_of"], counted["next_steps"]) == (0, 1, 1)
        assert counted["build"] <= 1, "the plan that was adopted is read from the status once"
    assert moving > 2
