"""What is not for clients, on ports of its own: routes for the operator (mutual TLS), metrics for Prometheus (plain)."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from splitinference_gateway.gateway import Gateway
from splitinference_gateway.server import peers
from splitinference_gateway.server.guard import Connected, HttpLimits
from splitinference_gateway.server.listeners import Listener, Sockets
from splitinference_protocol.report import GatewayReport, RouteState
from splitinference_protocol.wire.operations import OPERATOR

_LIMITS = HttpLimits(header_bytes=16 << 10, header_seconds=5.0, body_seconds=5.0, stall_seconds=15.0, connections=64)
_log = logging.getLogger(__name__)


def internal_app(gateway: Gateway) -> Starlette:
    """GET /internal/routes: what the operator learns; see docs/reference/data-plane.md."""

    async def routes(request: Request) -> Response:
        current = gateway.routes.current
        states = {route.revision: "serving" if route is current else "draining" for route in reversed(gateway.routes.known)}
        flights = gateway.routes.in_flight()
        return JSONResponse(
            GatewayReport(
                revision=current.revision if current else None,
                routes={revision: RouteState(in_flight=flights[revision], state=state) for revision, state in states.items()},
                segments=gateway.routes.in_flight_by_segment(),
                queued=gateway.admission.waiting,
                held=gateway.routes.held,
                observed=gateway.observed.report(round(gateway.admission.reserved, 4)),
                failing=gateway.failing.report(),
                verification=gateway.chain.verifier.report(),
                adapters=gateway.chain.adapters.in_flight,
                filter=gateway.inference.filtering.report() if gateway.inference.filtering is not None else None,
            ).written()
        )

    return Starlette(routes=[Route("/internal/routes", routes)])


def metrics_app(gateway: Gateway) -> Starlette:
    """GET /metrics, in Prometheus' text format, or in OpenMetrics where that is asked for. Only the latter has exemplars."""

    async def metrics(request: Request) -> Response:
        try:
            encoder, media_type = choose_encoder(request.headers.get("accept", ""))
        except (TypeError, ValueError):  # a version that is none
            encoder, media_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        return Response(encoder(gateway.metrics.registry), headers={"Content-Type": media_type})

    return Starlette(routes=[Route("/metrics", metrics)])


@asynccontextmanager
async def listening(gateway: Gateway, sockets: Sockets) -> AsyncIterator[tuple[int, int]]:
    """Both listeners, while the body runs; their ports.

    Raises:
        CertificatesError: the certificates cannot be used.
    """
    settings = gateway.settings
    operator = f"{settings.identity}/{OPERATOR}"
    context = peers.server_context(settings.tls_folder) if settings.tls_folder is not None else None
    if context is None:
        _log.warning("SI_INSECURE: anybody who reaches port %d may read the routes", settings.internal_port)

    def admits(transport: asyncio.Transport) -> bool:
        if (peer := peers.uri_of(transport)) == operator:
            return True
        _log.warning("a connection to the internal port was refused: the certificate's URI is %.200r, expected %s", peer, operator)
        return False

    def refused(listener: str) -> Connected:
        return Connected(_LIMITS, lambda reason: gateway.metrics.refused_connections.labels(listener, reason).inc())

    metrics = Listener(metrics_app(gateway), sockets.metrics, refused("metrics"))
    internal = Listener(internal_app(gateway), sockets.internal, refused("internal"), context, admits if context else None)
    renewals: set[asyncio.Task[None]] = set()

    def renew(context: ssl.SSLContext) -> None:
        renewal = asyncio.create_task(internal.renew(context))
        renewals.add(renewal)
        renewal.add_done_callback(renewals.discard)

    following = (
        asyncio.create_task(peers.follow(settings.tls_folder, renew, settings.tls_look_seconds))
        if settings.tls_folder is not None
        else None
    )
    try:
        await metrics.start()
        await internal.start()
        yield internal.port, metrics.port
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await asyncio.gather(*renewals, return_exceptions=True)
        await internal.stop()
        await metrics.stop()
