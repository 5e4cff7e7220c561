"""Routes between the nodes' pod subnets, for clusters without kind's own network plugin."""

import time

from e2e.cluster.kind import SUBNETS, pod_cidr
from e2e.cluster.machine.engine import Engine
from e2e.cluster.progress import together

# A packet that reaches FORWARD with a Service's address came before kube-proxy's rules. Let it vanish, and its connection is tracked
# without translation and hangs until its 30 s are over (CoreDNS' first one, on every new cluster); refused, it is tried again at once.
_REFUSE = "{0} -w -C FORWARD {1} 2>/dev/null || {0} -w -A FORWARD {1}"
_ADDRESS = "{{{{range .NetworkSettings.Networks}}}}{{{{.{0}}}}}{{{{end}}}}"


def _refuse(family: str) -> str:
    program = "iptables" if family == "ipv4" else "ip6tables"
    return _REFUSE.format(program, f"-d {SUBNETS[family][1]} -j REJECT")


def address(engine: Engine, node: str, family: str = "ipv4") -> str:
    """The node's address of this family on the nodes' network; empty while it has none."""
    field = "IPAddress" if family == "ipv4" else "GlobalIPv6Address"
    return engine.docker("inspect", "-f", _ADDRESS.format(field), node, check=False).strip()


def connect(
    engine: Engine,
    nodes: tuple[str, ...],
    *,
    all_nodes: tuple[str, ...] | None = None,
    timeout: float = 60,
    families: tuple[str, ...] = ("ipv4",),
) -> None:
    """Give every node a route to every other node's pods, as soon as all have addresses. `all_nodes` when `nodes` are not all: a
    node's pod subnet goes by its place among all.

    Raises TimeoutError naming the nodes that have no address by then.
    """
    until = time.monotonic() + timeout
    while missing := [node for node in nodes if not all(address(engine, node, family) for family in families)]:
        if time.monotonic() > until:
            raise TimeoutError(f"no address on the nodes' network after {timeout:.0f} s: {', '.join(missing)}")
        time.sleep(0.3)
    places = {node: index for index, node in enumerate(all_nodes or nodes)}
    via = {(node, family): address(engine, node, family) for node in nodes for family in families}

    def routes(node: str) -> None:
        others = [(other, family) for family in families for other in nodes if other != node]
        lines = [f"ip -{family[-1]} route replace {pod_cidr(places[other], family)} via {via[other, family]}" for other, family in others]
        engine.execute(node, "\n".join([*map(_refuse, families), *lines]))

    together([lambda node=node: routes(node) for node in nodes])  # type: ignore[misc]
