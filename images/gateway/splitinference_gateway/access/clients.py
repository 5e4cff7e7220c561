"""Who a client is, and whether it may ask: by one of the API keys, by a token of the cluster, or, where neither is set, anybody."""

from typing import Protocol

from splitinference_gateway.errors import ApiError
from splitinference_protocol.addresses import plain_address


class Clients(Protocol):
    """Tells clients apart."""

    async def identify(self, authorization: str, peer: str) -> str:
        """The client's name, for fairness between clients. `authorization` is the header's value, `peer` an address.

        Raises:
            ApiError: 401, no key or a wrong one; 503, it cannot be checked just now.
        """


class Anybody:
    """No credentials are asked for: a client is its address."""

    async def identify(self, authorization: str, peer: str) -> str:
        """The address."""
        return peer


def client_address(host: str) -> str:
    """An address as a client's name: IPv4 as such also where an IPv6 socket says it; what a proxy wrote that is none, shortened."""
    return plain_address(host) or host[:64]


def bearer(authorization: str) -> str:
    """The token of an Authorization header. ApiError 401 when there is none."""
    scheme, _, key = authorization.partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise ApiError(401, "You didn't provide an API key. Send it in an Authorization header: Bearer YOUR_KEY.")
    return key.strip()


def wrong_key() -> ApiError:
    """401: a key or token that is not accepted."""
    return ApiError(401, "Incorrect API key provided.", code="invalid_api_key")
