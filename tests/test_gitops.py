"""What GitOps tools make of the operator's statuses. Flux: kstatus, the library that its controllers wait with, built from its Go module.
Argo CD: the health check that the docs give, run by Lua 5.1 as Argo CD has it.

Neither tool's controllers run here. docs/how-to/flux.md and docs/how-to/argo-cd.md say what is said when.
"""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lupa import lua51

from e2e.cluster.offline import gobuild
from e2e.cluster.settings import Settings
from tests.controller import kubelet
from tests.controller.stories import busy_node, serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body
from tests.test_repository import ROOT

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "argo-cd.md"
KSTATUS = gobuild.Module("kstatus", "v0.36.0-flux.15", (".",), ("kstatus",), ROOT / "tests" / "kstatus")


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


@cache
def program() -> str:
    """Its path; built once into the cache, by half a minute of one core."""
    settings = Settings()
    if not KSTATUS.built(settings.cache):
        try:
            gobuild.Builder.here(settings).build(KSTATUS)
        except FileNotFoundError as error:
            pytest.skip(str(error))
    return str(KSTATUS.bin(settings.cache) / "kstatus")


def kstatus(body: dict[str, Any]) -> tuple[str, str]:
    """As the library says it: status and message."""
    line = json.dumps({"apiVersion": "splitinference.dev/v1alpha1", "kind": "SplitInference", **body}) + "\n"
    done = subprocess.run([program()], input=line, capture_output=True, text=True, check=True, timeout=60)
    status, _, message = done.stdout.strip().partition("\t")
    return status, message


@dataclass(frozen=True)
class Tool:
    """One tool, and its words for the states of a resource."""

    says: Callable[[dict[str, Any]], tuple[str, str]]
    on_its_way: str
    serving: str
    moving: str
    failed: str
    deleting: str


FLUX = Tool(kstatus, "InProgress", "Current", "InProgress", "Failed", "Terminating")
ARGO_CD = Tool(health, "Progressing", "Healthy", "Healthy", "Degraded", "Progressing")


@pytest.fixture(params=[FLUX, ARGO_CD], ids=["flux", "argo-cd"])
def tool(request: pytest.FixtureRequest) -> Tool:
    """Each of the two."""
    found: Tool = request.param
    return found


def test_the_pinned_version_is_the_one_of_the_module():
    assert f"github.com/fluxcd/cli-utils {KSTATUS.version}" in (ROOT / "tests/kstatus/go.mod").read_text()


def test_a_resource_that_nobody_has_looked_at_is_progressing():
    assert health(a_body())[0] == "Progressing"
    assert health(a_body() | {"status": {}})[0] == "Progressing"


def test_a_resource_on_its_way_and_one_that_serves(tool: Tool):
    world = World(small("a", "b"))
    world.add(a_body())
    operator = Operator(world)
    operator.look()
    assert tool.says(world.body())[0] == tool.on_its_way
    operator.run(6)
    status, message = tool.says(world.body())
    assert status == tool.serving
    if tool is ARGO_CD:
        assert message == "2 segments serve, each proven by an inference"


def test_a_new_specification_is_on_its_way_until_it_is_served(tool: Tool):
    world, operator = serving()
    world.change(workload={"promptTokens": 5})
    assert tool.says(world.body())[0] == tool.on_its_way
    operator.run(6)
    assert tool.says(world.body())[0] == tool.serving


def test_a_move(tool: Tool):
    world, operator = serving(small("a", "b", "c"))
    world.nodes[busy_node(world)]["spec"]["unschedulable"] = True
    operator.look()
    assert world.condition("Reconciling")["status"] == "True"
    assert tool.says(world.body())[0] == tool.moving


def test_what_fails_is_on_its_way_while_it_is_mended(tool: Tool):
    world, operator = serving()
    del world.objects["Pod", NAMESPACE, world.segments()[0]]
    operator.look()
    status, message = tool.says(world.body())
    assert status == tool.on_its_way
    if tool is ARGO_CD:
        assert "missing" in message


@pytest.mark.parametrize("serves", [True, False])
def test_what_cannot_be_met_has_failed_and_says_why(tool: Tool, serves: bool):
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
    status, message = tool.says(world.body())
    assert status == tool.failed
    assert ("connection refused" in message) is not serves


def test_what_is_being_deleted(tool: Tool):
    world, _ = serving()
    body = world.body()
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert tool.says(body)[0] == tool.deleting
    if tool is ARGO_CD:
        assert tool.says(body)[1] == "Being deleted"
