"""Routes between the nodes' pod subnets, for clusters without kind's own network plugin."""

import time

from e2e.cluster.engine import Engine
from e2e.cluster.kind import pod_cidr
from e2e.cluster.progress import together

_ADDRESS = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"


def address(engine: Engine, node: str) -> str:
    """The node's address on the nodes' network; empty while it has none."""
    return engine.docker("inspect", "-f", _ADDRESS, node, check=False).strip()


def connect(engine: Engine, nodes: tuple[str, ...], *, timeout: float = 60) -> None:
    """Give every node a route to every other node's pods, as soon as all have addresses.

    Raises TimeoutError naming the nodes that have none by then.
    """
    until = time.monotonic() + timeout
    while missing := [node for node in nodes if not address(engine, node)]:
        if time.monotonic() > until:
            raise TimeoutError(f"no address on the nodes' network after {timeout:.0f} s: {', '.join(missing)}")
        time.sleep(0.3)
    addresses = [address(engine, node) for node in nodes]

    def routes(index: int) -> None:
        lines = [f"ip route replace {pod_cidr(other)} via {via}" for other, via in enumerate(addresses) if other != index]
        engine.execute(nodes[index], "\n".join(lines))

    together([lambda index=index: routes(index) for index in range(len(nodes))])  # type: ignore[misc]
