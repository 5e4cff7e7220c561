"""Stories of goals and budgets: what is chosen, what each decision says, and what stays where nothing meets a budget."""

from typing import Any

import pytest

from splitinference.controller.api.spec import Rejected, read_resource
from tests.controller.stories import reasons, serving
from tests.controller.story_kinds.test_story_pipelines import solve
from tests.controller.world import Operator, World, a_body, a_node

PRICE, WATTS = "splitinference.dev/cost-per-hour", "splitinference.dev/busy-watts"


def priced(**figures: tuple[str, str]) -> dict[str, dict[str, Any]]:
    """Nodes that hold two of the four layers each, with price and power; the more they cost the quicker they are."""
    return {
        name: a_node(name, mib=310, **{PRICE: price, WATTS: watts, "splitinference.dev/compute-gflops": str(100 * float(price))})
        for name, (price, watts) in figures.items()
    }


def nodes_of(world: World) -> set[str]:
    return {segment["node"] for segment in world.status()["plan"]["segments"]}


FOUR = {"a": ("4", "100"), "b": ("3", "400"), "c": ("2", "300"), "d": ("1", "200")}


def test_the_cheapest_plan_and_its_figures_in_the_status():
    world, _ = serving(priced(**FOUR), objective={"goal": "cost"})
    assert nodes_of(world) == {"c", "d"}
    assert world.status()["cost"] == "3/h, 500 W"
    assert world.status()["plan"]["predicted"]["costPerHour"] == 3
    first = world.status()["decisions"][-1]
    assert "3 per hour" in first["message"], first


def test_a_budget_is_kept_and_named_in_the_decision():
    world, _ = serving(priced(**FOUR), objective={"goal": "latency", "maxCostPerHour": 6.5, "maxWatts": 450})
    assert nodes_of(world) == {"a", "c"}
    message = world.status()["decisions"][-1]["message"]
    assert "6 of at most 6.5 per hour" in message
    assert "400 of at most 450 W while it works" in message


def test_a_budget_that_nothing_meets_says_the_least_that_would_and_what_serves_stays():
    world = World(priced(**FOUR))
    world.add(a_body())
    operator = Operator(world, solve)
    operator.run(8)
    before = world.placement()
    world.change(objective={"goal": "latency", "maxCostPerHour": 2.5})
    operator.run(3)
    planned = world.condition("Planned")
    assert planned["status"] == "False"
    assert "3 per hour instead of 2.5 per hour" in planned["message"]
    assert world.placement() == before
    assert world.condition("Ready")["status"] == "True"
    world.change(objective={"goal": "latency", "maxCostPerHour": 3})
    operator.run(12)
    assert nodes_of(world) == {"c", "d"}
    assert reasons(world)[0] == "SpecChanged"


def test_without_prices_a_goal_of_cost_says_so():
    world = World({name: a_node(name, mib=310) for name in "abc"})
    world.add(a_body(objective={"goal": "cost"}))
    Operator(world, solve).run(3)
    assert world.condition("Planned")["status"] == "False"
    assert "its price is not known" in world.condition("Planned")["message"]


def test_throughput_uses_as_many_pipelines_as_fit():
    world = World(priced(**FOUR))
    world.add(a_body(objective={"goal": "throughput"}))
    Operator(world, solve).run(12)
    assert len(world.status()["pipelines"]) == 2
    assert nodes_of(world) == {"a", "b", "c", "d"}
    assert world.condition("Scaled") == world.condition("Scaled") | {"status": "True", "reason": "AllPipelinesServe"}


def test_the_cheapest_plan_that_keeps_the_slo_and_the_quickest_where_none_does():
    world, operator = serving(priced(**FOUR), objective={"goal": "cost"})
    cheap = world.status()["plan"]["predicted"]["timePerOutputTokenMs"]
    world.change(objective={"goal": "cost"}, slo={"timePerOutputToken": f"{0.8 * cheap:.3f}ms"})
    operator.run(12)
    assert world.status()["plan"]["predicted"]["timePerOutputTokenMs"] <= 0.8 * cheap
    assert nodes_of(world) not in ({"c", "d"}, {"a", "b"})
    world.change(objective={"goal": "cost"}, slo={"timePerOutputToken": "0.001ms"})
    operator.run(12)
    assert "no plan meets the SLO" in world.status()["decisions"][0]["message"]
    assert nodes_of(world) == {"a", "b"}


@pytest.mark.parametrize(
    ("objective", "more", "words"),
    [
        ({"goal": "cost", "then": ["cost"]}, {}, "then must name other goals"),
        ({"goal": "latency", "then": ["throughput"]}, {}, "then"),
        ({"goal": "energy", "weights": {"move": 1}}, {}, "weights are in ms"),
        ({"goal": "throughput", "maxWatts": 5}, {}, "neither then nor budgets"),
        ({"goal": "throughput"}, {"replicas": 2}, "chooses the number of pipelines"),
        ({"then": ["cost"]}, {"replicas": 2}, "is for one pipeline"),
        ({"maxWatts": 0}, {}, "greater than 0"),
        ({"maxCostPerHour": float("inf")}, {}, "finite"),
    ],
)
def test_what_contradicts_itself_is_rejected(objective: dict[str, Any], more: dict[str, Any], words: str):
    found = read_resource(a_body(objective=objective, **more))
    assert isinstance(found, Rejected)
    assert words in str(found)
