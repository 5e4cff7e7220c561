"""What tests ask of the machine that they start servers on: free ports, and a process with all that it started. Also for the gateway's."""

import contextlib
import random
import socket
from pathlib import Path


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


def family(process: int) -> list[int]:
    """A process and all its descendants, whatever group they are in."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found
