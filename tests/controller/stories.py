"""How stories over the pretend cluster begin: small nodes, one resource that serves, and what was decided."""

from datetime import timedelta
from typing import Any

from tests.controller.world import NAMESPACE, Operator, World, a_body, a_node


def small(*names: str, mib: int = 310) -> dict[str, dict[str, Any]]:
    """Nodes that hold two of the four layers each."""
    return {name: a_node(name, mib=mib) for name in names}


def serving(nodes: dict[str, dict[str, Any]] | None = None, **spec: Any) -> tuple[World, Operator]:
    """A world where one resource serves, past its cooldown."""
    world = World(nodes or small("a", "b", "c"))
    world.add(a_body(**spec))
    operator = Operator(world)
    operator.run(6)
    assert world.condition("Ready")["status"] == "True", world.status()
    world.now += timedelta(seconds=120)
    operator.look()
    return world, operator


def upgraded(world: World, image: str = "segment:next") -> Operator:
    """The operator after an upgrade: segments are to have another image."""
    world.settings = world.settings.model_copy(update={"segment_image": image})
    return Operator(world)


def images(world: World) -> list[str]:
    """The image of each segment that is there and not leaving."""
    pods = (world.objects["Pod", NAMESPACE, name] for name in world.segments())
    return [pod["spec"]["containers"][0]["image"] for pod in pods]


def reasons(world: World, name: str = "chat") -> list[str]:
    return [decision["reason"] for decision in world.status(name)["decisions"]]


def busy_node(world: World) -> str:
    """A node that holds a segment and not the gateway."""
    return str(world.status()["plan"]["segments"][1]["node"])
