"""What a resource may ask of nodes, as a pass has it; the rules themselves are in tests/apiserver/test_admission.py, beside the chart's."""

import pytest
from pydantic import ValidationError

from splitinference.settings import AllowedToleration, Settings
from tests.controller.stories import serving, small
from tests.controller.world import Operator, World, a_body


def test_by_default_no_folder_and_no_toleration_is_allowed_and_nothing_is_made():
    world = World(small("a", "b", "c"))
    world.settings = world.settings.model_copy(update={"allowed_host_paths": (), "allowed_tolerations": ()})
    world.add(a_body(placement={"tolerations": [{"operator": "Exists"}]}))
    Operator(world).run(3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "PolicyViolation")
    assert "spec.model.source.hostPath.path: /m is not" in accepted["message"]
    assert "policy.allowedHostPaths allows (none)" in accepted["message"]
    assert "spec.placement.tolerations[0]: the toleration of every taint" in accepted["message"]
    assert not [key for key in world.objects if key[0] != "SplitInference"]
    assert [event for event in world.events if event[1] == "PolicyViolation"]


def test_a_policy_that_gets_stricter_leaves_what_serves():
    world, _ = serving()
    world.settings = world.settings.model_copy(update={"allowed_host_paths": ("/elsewhere",)})
    Operator(world).run(5)
    assert world.condition("Accepted")["reason"] == "PolicyViolation"
    assert "/elsewhere" in world.condition("Accepted")["message"]
    assert world.condition("Ready")["status"] == "True"
    assert len(world.segments()) == 2


@pytest.mark.parametrize("folder", ["models", "", "/models/../etc", "/./models"])
def test_a_policy_that_makes_no_sense_is_refused(folder: str):
    with pytest.raises(ValidationError):
        Settings(allowed_host_paths=(folder,))


@pytest.mark.parametrize("fields", [{}, {"operator": "Exists", "value": "x"}, {"key": "a", "effect": "Never"}])
def test_an_allowed_toleration_that_makes_no_sense_is_refused(fields: dict[str, str]):
    with pytest.raises(ValidationError):
        AllowedToleration.model_validate(fields)
