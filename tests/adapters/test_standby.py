"""What the kubelet asks of a replica that stands by."""

import http.client
import socket

import pytest

from splitinference.adapters.kubernetes.leases import healthy
from splitinference.cli.bench.control.control_plane import free_port


def has_ipv6() -> bool:
    """Whether this machine's loopback has an IPv6 address."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HOSTS = ["127.0.0.1", *(["::1"] if has_ipv6() else [])]


@pytest.mark.parametrize("host", HOSTS)
def test_it_is_healthy_by_either_family_and_leaves_the_port_to_the_leader(host: str):
    port = free_port()
    for _ in range(2):
        with healthy(port):
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request("GET", "/healthz")
            assert connection.getresponse().status == 200
            connection.close()
