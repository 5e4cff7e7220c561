"""The health check that the docs give to Argo CD, run by Lua 5.1 as Argo CD has it, over statuses of the operator."""

import re
from pathlib import Path
from typing import Any

import pytest
from lupa import lua51

from tests.controller import kubelet
from tests.controller.stories import busy_node, serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "argo-cd.md"


def health(obj: dict[str, Any]) -> tuple[str, str]:
    """As Argo CD evaluates it: the script sees `obj` and returns a table."""
    (script,) = re.findall(r"```lua\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lua = lua51.LuaRuntime(register_eval=False, unpack_returned_tuples=True)

    def table(value: Any) -> Any:
        if isinstance(value, dict):
            return lua.table_from({key: table(inner) for key, inner in value.items()})
        return lua.table_from([table(inner) for inner in value]) if isinstance(value, list | tuple) else value

    lua.globals().obj = table(obj)
    found = lua.execute(script)
    return str(found["status"]), str(found["message"])


def test_a_resource_that_nobody_has_looked_at_is_progressing():
    assert health(a_body())[0] == "Progressing"
    assert health(a_body() | {"status": {}})[0] == "Progressing"


def test_a_resource_on_its_way_is_progressing_and_one_that_serves_is_healthy():
    world = World(small("a", "b"))
    world.add(a_body())
    operator = Operator(world)
    operator.look()
    assert health(world.body())[0] == "Progressing"
    operator.run(6)
    assert health(world.body()) == ("Healthy", "2 segments serve, each proven by an inference")


def test_a_new_specification_is_progressing_until_it_is_looked_at():
    world, operator = serving()
    world.change(workload={"promptTokens": 5})
    assert health(world.body())[0] == "Progressing"
    operator.run(6)
    assert health(world.body())[0] == "Healthy"


def test_a_move_is_healthy():
    world, operator = serving(small("a", "b", "c"))
    world.nodes[busy_node(world)]["spec"]["unschedulable"] = True
    operator.look()
    assert world.condition("Reconciling")["status"] == "True"
    assert health(world.body())[0] == "Healthy"


def test_what_fails_is_progressing_while_it_is_mended():
    world, operator = serving()
    del world.objects["Pod", NAMESPACE, world.segments()[0]]
    operator.look()
    status, message = health(world.body())
    assert status == "Progressing"
    assert "missing" in message


@pytest.mark.parametrize("serves", [True, False])
def test_what_cannot_be_met_is_degraded_and_says_why(serves):
    if serves:
        world, operator = serving(small("a", "b"))
        world.change(placement={"nodeSelector": {"no": "node"}})
        operator.run(3)
    else:
        world = World(small("a", "b"))
        world.add(a_body())
        for node in world.nodes:
            world.hinders[node] = {"containerStatuses": [kubelet.REGISTRY_DOWN]}
        Operator(world).run(25)
    status, message = health(world.body())
    assert status == "Degraded"
    assert ("connection refused" in message) is not serves


def test_what_is_being_deleted_is_progressing():
    world, _ = serving()
    body = world.body()
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert health(body) == ("Progressing", "Being deleted")
