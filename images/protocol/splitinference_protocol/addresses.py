"""Addresses of IPv4 and IPv6: to listen at whichever a machine has, to write and read them, and in one form each."""

import contextlib
import socket
from ipaddress import ip_address

ANY_IPV4, ANY_IPV6 = "0.0.0.0", "::"


def any_address() -> str:
    """The address to listen at for both families: `::`, which takes IPv4 too, unless this machine has no IPv6."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind((ANY_IPV6, 0))
    except OSError:
        return ANY_IPV4
    return ANY_IPV6


def any_address_of(family_of: str) -> str:
    """The address to listen at, in brackets where it needs them, for a server that takes one family only: that of an example address."""
    return bracketed(ANY_IPV6 if ":" in family_of else ANY_IPV4)


def listen(port: int, backlog: int = 256) -> socket.socket:
    """A listener for IPv6 and IPv4, or for IPv4 alone where there is no IPv6. Raises OSError when the port is taken."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server((ANY_IPV6, port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog)
    return socket.create_server((ANY_IPV4, port), backlog=backlog)


def bracketed(host: str) -> str:
    """A host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def joined(host: str, port: int) -> str:
    """host:port."""
    return f"{bracketed(host)}:{port}"


def separated(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of host:port. ValueError where there is no port."""
    host, _, port = address.rpartition(":")
    if not host:
        raise ValueError(f"{address!r:.100} is not host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def plain_address(address: str) -> str:
    """IPv4 addresses as such, also where an IPv6 socket writes them as ::ffff:a.b.c.d, and without a zone."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)
