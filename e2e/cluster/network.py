"""Routes between the nodes' pod subnets, for clusters without kind's own network plugin."""

import time

from e2e.cluster.engine import Engine
from e2e.cluster.kind import SERVICE_SUBNET, pod_cidr
from e2e.cluster.progress import together

# A packet that reaches FORWARD with a Service's address came before kube-proxy's rules. Let it vanish, and its connection is tracked
# without translation and hangs until its 30 s are over (CoreDNS' first one, on every new cluster); refused, it is tried again at once.
_REFUSE = "iptables -w -C FORWARD {0} 2>/dev/null || iptables -w -A FORWARD {0}".format(f"-d {SERVICE_SUBNET} -j REJECT")
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
        lines = [f"ip route replace {pod_cidr(places[other])} via {via[other]}" for other in nodes if other != node]
        engine.execute(node, "\n".join([_REFUSE, *lines]))

    together([lambda node=node: routes(node) for node in nodes])  # type: ignore[misc]
