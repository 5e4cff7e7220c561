"""Routes between the nodes' pod subnets, for clusters without kind's own network plugin."""

import time

from e2e.cluster.engine import Engine
from e2e.cluster.kind import pod_cidr
from e2e.cluster.progress import together

_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


def address(engine: Engine, node: str) -> str:
    """The node's address on the nodes' network; empty while it has none."""
    return engine.docker("inspect", "-f", _ADDRESS, node, check=False).strip()


def connect(engine: Engine, nodes: tuple[str, ...], *, all_nodes: tuple[str, ...] | None = None, timeout: float = 60) -> None:
    """Give every node a route to every other node's pods, as soon as all have addresses. `all_nodes` when `nodes` are not all: a
    node's pod subnet goes by its place among all.

    Raises TimeoutError naming the nodes that have no address by then.
    """
    until = time.monotonic() + timeout
    while missing := [node for node in nodes if not address(engine, node)]:
        if time.monotonic() > until:
            raise TimeoutError(f"no address on the nodes' network after {timeout:.0f} s: {', '.join(missing)}")
        time.sleep(0.3)
    places = {node: index for index, node in enumerate(all_nodes or nodes)}
    via = {node: address(engine, node) for node in nodes}

    def routes(node: str) -> None:
        engine.execute(node, "\n".join(f"ip route replace {pod_cidr(places[other])} via {via[other]}" for other in nodes if other != node))

    together([lambda node=node: routes(node) for node in nodes])  # type: ignore[misc]
