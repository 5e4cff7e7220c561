"""Stories of mode Advisory: a better plan is offered, a person approves or rejects it, and old answers approve nothing."""

from datetime import timedelta
from typing import Any

from splitinference.controller.reconcile.status.proposals import APPROVE, REJECT
from tests.controller.stories import busy_node, reasons, serving
from tests.controller.world import Operator, World

ADVISORY = {"adaptation": {"mode": "Advisory", "window": "20s", "confirmations": 3, "cooldown": "60s", "minGainPercent": 5}}


def offered() -> tuple[World, Operator, dict[str, Any]]:
    """A world in which a busy node has led to an offer."""
    world, operator = serving(**ADVISORY)
    world.busy[busy_node(world)] = 0.93
    operator.run(12)
    proposal = world.status()["proposal"]
    assert reasons(world)[0] == "Advised"
    return world, operator, proposal


def answer(world: World, key: str, value: str) -> None:
    """As `kubectl annotate` does."""
    world.body()["metadata"].setdefault("annotations", {})[key] = value


def placement(plan: dict[str, Any]) -> str:
    return " ".join(f"{s['node']}[{s['start']}:{s['end']}]" for s in plan["segments"])


def test_an_offer_names_the_plan_it_would_replace_and_moves_nothing():
    world, operator, proposal = offered()
    assert proposal["from"] == world.status()["plan"]["revision"]
    assert proposal["revision"] != proposal["from"]
    assert placement(proposal) != world.placement()
    assert proposal["reason"] == "UtilizationShifted"
    assert "net gain" in proposal["message"]
    writes = len(world.routes_seen)
    operator.run(20)
    assert world.status()["proposal"] == proposal, "an offer of the same plan stays as it is"
    assert len(world.routes_seen) == writes


def test_the_approved_plan_is_adopted_and_served():
    world, operator, proposal = offered()
    answer(world, APPROVE, proposal["id"])
    operator.run(12)
    assert world.placement() == placement(proposal)
    assert world.status()["plan"]["revision"] == proposal["revision"]
    assert reasons(world)[0] == "Approved"
    assert "approved" in world.status()["decisions"][0]["message"]
    assert "proposal" not in world.status()
    assert world.condition("Ready")["status"] == "True"


def test_an_approval_is_of_one_offer_and_not_of_a_later_one_of_the_same_plan():
    world, operator, proposal = offered()
    busy, before = busy_node(world), world.placement()
    (target,) = {s["node"] for s in proposal["segments"]} - {s["node"] for s in world.status()["plan"]["segments"]}
    answer(world, APPROVE, proposal["id"])
    operator.run(12)
    for node, plan in ((target, before), (busy, placement(proposal))):  # there and back again
        world.now += timedelta(minutes=20)
        world.busy = {node: 0.93}
        operator.run(20)
        later = world.status()["proposal"]
        assert placement(later) == plan
        assert placement(later) != world.placement(), "the annotation of before approves nothing"
        if plan == before:
            answer(world, APPROVE, later["id"])
            operator.run(12)
            answer(world, APPROVE, proposal["id"])
    assert later["revision"] == proposal["revision"]
    assert later["id"] != proposal["id"]


def test_an_approval_that_names_another_offer_does_nothing():
    world, operator, proposal = offered()
    before = world.placement()
    for wrong in (proposal["revision"], "", "0ddba11-20260101T000000Z", proposal["id"] + " "):
        answer(world, APPROVE, wrong)
        operator.run(3)
        assert world.placement() == before
    assert world.status()["proposal"] == proposal


def test_a_rejected_plan_is_not_offered_again_for_a_day():
    world, operator, proposal = offered()
    before = world.placement()
    answer(world, REJECT, proposal["id"])
    operator.run(1)
    assert "proposal" not in world.status()
    assert reasons(world)[0] == "Rejected"
    operator.run(12)
    assert "proposal" not in world.status()
    assert world.placement() == before
    world.now += timedelta(hours=24)
    operator.run(20)
    assert world.status()["proposal"]["revision"] == proposal["revision"]
    assert world.status()["proposal"]["id"] != proposal["id"]


def test_who_rejects_and_approves_the_same_offer_has_rejected_it():
    world, operator, proposal = offered()
    before = world.placement()
    answer(world, APPROVE, proposal["id"])
    answer(world, REJECT, proposal["id"])
    operator.run(6)
    assert world.placement() == before


def test_an_approved_plan_that_is_no_longer_better_is_not_adopted_and_the_numbers_are_said():
    world, operator, proposal = offered()
    before = world.placement()
    world.busy.clear()
    answer(world, APPROVE, proposal["id"])
    operator.run(3)
    assert world.placement() == before
    assert reasons(world)[0] == "ApprovalVoid"
    assert "no longer better than the present plan" in world.status()["decisions"][0]["message"]
    assert "proposal" not in world.status()


def test_an_approved_plan_whose_node_is_gone_is_not_adopted():
    world, operator, proposal = offered()
    before, used = world.placement(), {s["node"] for s in world.status()["plan"]["segments"]}
    (target,) = {s["node"] for s in proposal["segments"]} - used
    del world.nodes[target]
    answer(world, APPROVE, proposal["id"])
    operator.run(3)
    assert world.placement() == before
    void = next(d for d in world.status()["decisions"] if d["reason"] == "ApprovalVoid")
    assert target in void["message"]


def test_an_offer_ends_with_the_mode_and_an_approval_then_does_nothing():
    world, operator, proposal = offered()
    world.change(adaptation={**ADVISORY["adaptation"], "mode": "Frozen"})
    answer(world, APPROVE, proposal["id"])
    before = world.placement()
    operator.run(3)
    assert "proposal" not in world.status()
    assert world.placement() == before


def test_an_offer_survives_a_restart_of_the_operator():
    world, _, proposal = offered()
    again = Operator(world)
    again.run(2)
    assert world.status()["proposal"] == proposal
    answer(world, APPROVE, proposal["id"])
    again.run(12)
    assert world.placement() == placement(proposal)
