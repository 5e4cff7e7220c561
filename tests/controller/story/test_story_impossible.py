"""Stories of what cannot be: no room, an invalid spec, a model that cannot be read; what serves serves on."""

from splitinference.controller.ports import Pending, Unreadable
from tests.controller.stories import reasons, serving, small
from tests.controller.world import NAMESPACE, Operator, World, a_body
from tests.core.planning import a_profile


def test_what_does_not_fit_is_said_with_numbers_and_an_event_once():
    world = World(small("a", "b", mib=90))
    world.add(a_body())
    Operator(world).run(10)
    planned = world.condition("Planned")
    assert (planned["status"], planned["reason"]) == ("False", "Infeasible")
    assert "400 MiB" in planned["message"]
    assert world.condition("Stalled")["status"] == "True"
    assert world.condition("Ready")["status"] == "False"
    assert len([e for e in world.events if e[1] == "Infeasible"]) == 1
    assert reasons(world) == ["Infeasible"]


def test_a_spec_that_became_impossible_keeps_what_serves_even_when_a_pod_is_lost():
    world, operator = serving()
    before, route = world.placement(), list(world.routes_seen)
    world.change(privacy={"rules": [{"layers": "first", "nodeLabels": {"trusted": "nobody"}}]})
    operator.run(4)
    assert world.condition("Planned")["status"] == "False"
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Stalled")["status"] == "True", "not done: the new generation is not what serves"
    assert world.status()["observedGeneration"] == 2
    del world.objects["Pod", NAMESPACE, world.segments()[0]]
    operator.run(4)
    assert world.condition("Ready")["status"] == "True"
    assert (world.placement(), world.routes_seen) == (before, route)
    world.change(privacy={"rules": []})
    operator.run(3)
    assert world.condition("Planned")["status"] == "True"
    assert "Stalled" not in [c["type"] for c in world.status()["conditions"]]


def test_an_invalid_spec_names_the_field_and_serves_on():
    world, operator = serving()
    world.change(partition={"allowedSplitPoints": [99]})
    operator.run(3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "SpecRejected")
    assert "spec.partition.allowedSplitPoints[0]" in accepted["message"]
    assert world.condition("Ready")["status"] == "True"


def test_a_model_that_cannot_be_read():
    world = World(small("a", "b"))
    world.add(a_body(), Unreadable(message="no config.json in the folder /m on the nodes"))
    Operator(world).run(3)
    assert world.condition("Accepted")["status"] == "False"
    assert world.condition("Accepted")["reason"] == "ModelUnreadable"
    assert "no config.json" in world.condition("Accepted")["message"]
    assert len(world.events) == 1


def test_a_context_beyond_the_models_positions_is_refused_with_both_numbers_and_serves_on():
    world, operator = serving()
    world.profiles["chat"] = a_profile().model_copy(update={"positions": 1024})
    world.change(model={**world.body("chat")["spec"]["model"], "maxContextTokens": 4096})
    operator.run(3)
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "SpecRejected")
    assert "spec.model.maxContextTokens" in accepted["message"]
    assert "4096 is more than the 1024 positions" in accepted["message"]
    assert world.condition("Ready")["status"] == "True"
    assert world.status()["plan"]["segments"]
    world.change(model={**world.body("chat")["spec"]["model"], "maxContextTokens": 1024})
    operator.run(3)
    assert world.condition("Accepted")["status"] == "True"


def test_a_model_that_is_being_read_is_waited_for():
    world = World(small("a", "b"))
    world.add(a_body(), Pending(message="a pod reads the model on a"))
    operator = Operator(world)
    operator.look()
    assert world.condition("Accepted")["status"] == "Unknown"
    assert world.condition("Progressing")["status"] == "True"
    world.profiles["chat"] = a_profile()
    operator.run(5)
    assert world.condition("Ready")["status"] == "True"


def test_a_model_that_became_unreadable_serves_on():
    world, operator = serving()
    world.profiles["chat"] = Unreadable(message="gone")
    operator.run(3)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Accepted")["status"] == "False"
    assert world.status()["plan"]["segments"]


def test_another_model_is_cut_over_to_whole():
    world, operator = serving(small("a", "b", "c", mib=700))
    before = set(world.segments())
    world.profiles["chat"] = a_profile(digest="fedcba9876543210")
    operator.run(8)
    assert not before & set(world.segments())
    assert world.condition("Ready")["status"] == "True"
    assert "SpecChanged" in reasons(world)
