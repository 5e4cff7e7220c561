"""A CRD that is newer than the operator: its defaults do no harm, what somebody chose is refused, and the plan in force stays."""

import copy
from typing import Any

import pytest

from splitinference.adapters.kubernetes.crd import CrdNotes
from splitinference.controller.api.newer_fields import has_newer_fields, known_part, spec_schema, without_newer_defaults
from splitinference.controller.api.spec import Rejected, read_spec
from tests.controller.api.test_crd_gaps import CRD
from tests.controller.stories import reasons, serving
from tests.controller.world import Operator, World, a_body

NEWER: dict[str, Any] = {
    "flavour": {"type": "string", "default": "Plain"},
    "later": {"type": "object", "default": {}, "properties": {"seconds": {"type": "integer", "default": 7}, "name": {"type": "string"}}},
}
FILLED = {"flavour": "Plain", "later": {"seconds": 7}}
"""As the API server fills them in."""


def newer_crd() -> dict[str, Any]:
    """A CRD with more fields: of the specification, of a part, and of the items of a list."""
    crd = copy.deepcopy(CRD)
    parts = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    for part in (parts, parts["gateway"]["properties"], parts["privacy"]["properties"]["rules"]["items"]["properties"]):
        part.update(copy.deepcopy(NEWER))
    return crd


SCHEMA = spec_schema(newer_crd())


def body(**newer: Any) -> dict[str, Any]:
    """A resource as it comes from an API server with the newer CRD."""
    rule = {"layers": "first", "nodeLabels": {"zone": "a"}, **FILLED}
    found = a_body(gateway={"speculation": "Auto", **FILLED}, privacy={"rules": [rule]})
    found["spec"] |= {**FILLED, **newer}
    return found


def test_defaults_of_fields_that_only_the_newer_crd_has_are_left_out_at_every_depth():
    spec = body()["spec"]
    assert isinstance(read_spec(spec), Rejected)
    assert has_newer_fields(spec)
    left = without_newer_defaults(spec, SCHEMA)
    assert not has_newer_fields(left)
    assert left["gateway"] == {"speculation": "Auto"}
    assert left["privacy"]["rules"] == [{"layers": "first", "nodeLabels": {"zone": "a"}}]
    assert known_part(spec) == left


@pytest.mark.parametrize("chosen", [{"flavour": "Strong"}, {"later": {"seconds": 8}}, {"later": {"seconds": 7, "name": "x"}}, {"more": 1}])
def test_what_somebody_chose_is_refused_and_the_field_is_named(chosen: dict[str, Any]):
    left = without_newer_defaults(body(**chosen)["spec"], SCHEMA)
    found = read_spec(left)
    assert isinstance(found, Rejected)
    (name,) = chosen
    assert f"spec.{name}: this operator does not know the field: is it older than the CRD" in str(found)


def test_where_the_crd_is_not_known_nothing_is_left_out():
    spec = body()["spec"]
    assert without_newer_defaults(spec, {}) == spec
    assert spec_schema({"spec": {"versions": [{"name": "v1alpha0"}]}}) == {}


class Server:
    """An API server that has a CRD."""

    def __init__(self, crd: dict[str, Any]) -> None:
        self.crd, self.asked = crd, 0

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        self.asked += 1
        return self.crd


def notes(server: Server) -> CrdNotes:
    return CrdNotes(server)  # type: ignore[arg-type]


def test_a_crd_that_was_upgraded_since_the_last_look_is_looked_at_soon(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("splitinference.adapters.kubernetes.crd.time.monotonic", lambda: now[0])
    server = Server(CRD)
    crd = notes(server)
    assert crd() == ""
    plain = a_body()
    assert crd.as_known(plain) is plain
    server.crd = newer_crd()
    now[0] = 4.0
    assert has_newer_fields(crd.as_known(body())["spec"])
    assert server.asked == 1, "not at every pass"
    now[0] = 6.0
    assert not has_newer_fields(crd.as_known(body())["spec"])
    now[0] = 30.0
    assert not has_newer_fields(crd.as_known(body())["spec"])
    assert server.asked == 2


def knowing(world: World) -> Operator:
    """An operator that was started anew and reads the newer CRD."""
    operator = Operator(world)
    operator.reconciler.as_known = notes(Server(newer_crd())).as_known
    return operator


def test_a_newer_crd_moves_nothing():
    world, _ = serving()
    before, plan = reasons(world), world.placement()
    world.body()["spec"] |= FILLED
    knowing(world).run(6)
    assert world.condition("Accepted")["status"] == "True"
    assert (reasons(world), world.placement()) == (before, plan)


def test_defaults_that_an_upgrade_brings_are_no_other_specification():
    """The plan was made when the CRD had fewer fields."""
    world, _ = serving()
    before, plan = reasons(world), world.placement()
    asked = world.status()["plan"]["asked"]
    world.body()["spec"] = {**world.body()["spec"], "gateway": {"speculation": "Auto", "longAnswers": "Cut"}}
    Operator(world).run(6)
    assert (reasons(world), world.placement()) == (before, plan)
    assert world.status()["plan"]["asked"] != asked, "the next operator need not compare"
    assert world.status()["plan"]["madeFor"] == world.body()["spec"], "an older operator can read it once the CRD is its own again"


def test_another_value_is_another_specification():
    world, _ = serving()
    world.body()["spec"] = {**world.body()["spec"], "gateway": {"speculation": "Off"}}
    world.body()["metadata"]["generation"] += 1
    Operator(world).run(6)
    assert reasons(world)[0] == "SpecChanged"


def test_after_a_rollback_the_plan_that_a_newer_operator_made_stays():
    world, _ = serving()
    before, plan = reasons(world), world.placement()
    world.status()["plan"] |= {"madeFor": {**world.status()["plan"]["madeFor"], **FILLED}, "asked": "of-a-newer-operator"}
    Operator(world).run(6)
    assert (reasons(world), world.placement()) == (before, plan)
    assert world.status()["plan"]["madeFor"] == world.body()["spec"]
