"""Free ports for servers that tests start; also for the gateway's tests."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses just now, and that no connection is given by the kernel until a server has come up on them."""
    ports: list[int] = []
    for port in random.sample(range(10_000, 30_000), 2_000):  # below what Linux gives connections
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("0.0.0.0", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise RuntimeError(f"fewer than {count} free ports")
