"""Addresses of clients, in one form each."""

from ipaddress import ip_address


def plain_address(address: str) -> str:
    """IPv4 addresses as such, also where an IPv6 socket writes them as ::ffff:a.b.c.d, and without a zone."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    mapped = getattr(parsed, "ipv4_mapped", None)
    return str(mapped or parsed)
