"""What Flux makes of the operator's statuses: by kstatus, the library that its controllers wait with, built from its Go module.

Flux's controllers themselves are not run here. docs/how-to/flux.md says what kstatus says when.
"""

import json
import subprocess
from functools import cache
from typing import Any

import pytest

from e2e.cluster.offline import gobuild
from e2e.cluster.settings import Settings
from tests.controller import kubelet
from tests.controller.stories import busy_node, serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body
from tests.test_repository import ROOT

KSTATUS = gobuild.Module("kstatus", "v0.36.0-flux.15", (".",), ("kstatus",), ROOT / "tests" / "kstatus")


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


def said(body: dict[str, Any]) -> tuple[str, str]:
    """Status and message."""
    line = json.dumps({"apiVersion": "splitinference.dev/v1alpha1", "kind": "SplitInference", **body}) + "\n"
    done = subprocess.run([program()], input=line, capture_output=True, text=True, check=True, timeout=60)
    status, _, message = done.stdout.strip().partition("\t")
    return status, message


def test_the_pinned_version_is_the_one_of_the_module():
    assert f"github.com/fluxcd/cli-utils {KSTATUS.version}" in (ROOT / "tests/kstatus/go.mod").read_text()


def test_a_resource_on_its_way_is_in_progress_and_one_that_serves_is_current():
    world = World(small("a", "b"))
    world.add(a_body())
    operator = Operator(world)
    operator.look()
    assert said(world.body())[0] == "InProgress"
    operator.run(6)
    assert said(world.body())[0] == "Current"


def test_a_new_specification_is_in_progress_until_it_is_served():
    world, operator = serving()
    world.change(workload={"promptTokens": 5})
    assert said(world.body())[0] == "InProgress"
    operator.run(6)
    assert said(world.body())[0] == "Current"


def test_a_move_is_in_progress():
    world, operator = serving(small("a", "b", "c"))
    world.nodes[busy_node(world)]["spec"]["unschedulable"] = True
    operator.look()
    assert said(world.body())[0] == "InProgress"


def test_what_fails_is_in_progress_while_it_is_mended():
    world, operator = serving()
    del world.objects["Pod", NAMESPACE, world.segments()[0]]
    operator.look()
    assert said(world.body())[0] == "InProgress"


@pytest.mark.parametrize("serves", [True, False])
def test_what_cannot_be_met_has_failed_and_says_why(serves: bool):
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
    status, message = said(world.body())
    assert status == "Failed"
    assert ("connection refused" in message) is not serves


def test_what_is_being_deleted_is_terminating():
    world, _ = serving()
    body = world.body()
    body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert said(body)[0] == "Terminating"
