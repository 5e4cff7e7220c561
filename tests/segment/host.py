"""What tests ask of the machine that they start servers on: free ports, and a process with all that it started. Also for the gateway's."""

import atexit
import contextlib
import random
import socket
from pathlib import Path

_KEPT = contextlib.ExitStack()
atexit.register(_KEPT.close)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses just now, and that no connection is given by the kernel until a server has come up on them.

    Servers take seconds to do so, and several tests run beside each other. So each port is kept for this process until it ends, by a name
    in the network namespace's list of local sockets.
    """
    ports: list[int] = []
    for port in random.sample(range(10_000, 30_000), 2_000):  # below what Linux gives connections
        kept = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            kept.bind(f"\0splitinference-port-{port}")
            with socket.socket() as tried:
                tried.bind(("0.0.0.0", port))
        except OSError:
            kept.close()
            continue
        _KEPT.enter_context(kept)
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
