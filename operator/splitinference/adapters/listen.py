"""Where the operator listens, so that it is reached by IPv4 and by IPv6, whichever of the two a cluster has."""

import socket

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


def health_address(pod_ip: str) -> str:
    """Where kubelets ask for health: they use the pod's first address. kopf's server takes one family only, so it is that one's."""
    return f"[{ANY_IPV6}]" if ":" in pod_ip else ANY_IPV4
