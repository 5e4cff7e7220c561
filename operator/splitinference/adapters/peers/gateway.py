"""The gateways' own account of their routes: each pod of a gateway is asked at its address, and what they say is added up.

While a gateway is replaced there are two, and what is in flight on either counts. A pod that does not answer, and is being stopped or known
not to be ready, has given up its routes: the streams that it may still have go on by replay.
"""

import http.client
import io
import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from splitinference.adapters.peers.mutual import Connection, Peers, TooMuchError, UnreachableError, UntrustedError
from splitinference.controller.identity import Owner, Role
from splitinference.controller.manifests.gateway import GATEWAY, INTERNAL_PORT
from splitinference.controller.manifests.pod_parts import COMPONENT
from splitinference.controller.ports import Manifest
from splitinference.controller.reconcile.status.filtered import together
from splitinference_protocol.report import GatewayReport, RouteState, Verified

Owned = Callable[[str, str, str], Sequence[Manifest]]
_MOST_BYTES = 1 << 20
"""Of an answer: some hundred bytes for each route and segment."""
_PIECE_BYTES = 1 << 16
_IDLE_SECONDS = 60.0
_REQUEST = b"GET /internal/routes HTTP/1.1\r\nHost: gateway\r\nAccept: application/json\r\n\r\n"
Where = tuple[Owner, str]


class GatewayRoutes:
    """Implements `Gateways`. Connections are kept between passes: a handshake takes a millisecond of the processor on either side."""

    def __init__(self, peers: Peers, owned: Owned, timeout_seconds: float, port: int = INTERNAL_PORT) -> None:
        """`owned`: the objects of a kind of one resource, as `Cluster.owned` gives them."""
        self._peers = peers
        self._owned = owned
        self._timeout = timeout_seconds
        self._port = port
        self._lock = threading.Lock()
        self._kept: dict[Where, tuple[float, Connection]] = {}

    def routes(self, owner: Owner) -> GatewayReport | None:
        """What all pods of the gateway say together; None where one that should answer does not, or there is none."""
        reports: list[GatewayReport] = []
        for pod in self._owned("Pod", owner.namespace, owner.name):
            if (pod["metadata"].get("labels") or {}).get(COMPONENT) != GATEWAY or not _lives(pod):
                continue
            report = self._ask(owner, pod["status"]["podIP"])
            if report is not None:
                reports.append(report)
            elif _serves(pod):
                return None
        return merged(reports)

    def close(self) -> None:
        """Close what was kept."""
        with self._lock:
            for _, connection in self._kept.values():
                connection.close()
            self._kept.clear()

    def _ask(self, owner: Owner, address: str) -> GatewayReport | None:
        deadline = time.monotonic() + self._timeout
        where = (owner, address)
        if (kept := self._taken(where)) is not None:
            try:
                return self._said(where, kept, deadline)
            except (OSError, http.client.HTTPException):
                kept.close()  # the gateway may have closed it meanwhile, so that says nothing yet
            except (TooMuchError, ValueError, RecursionError):
                kept.close()
                return None
        connection: Connection | None = None
        try:
            connection = self._peers.connect(
                owner, Role.GATEWAY, (address, self._port), f"{owner.name}-gateway.{owner.namespace}", deadline
            )
            return self._said(where, connection, deadline)
        except (OSError, http.client.HTTPException, UnreachableError, UntrustedError, TooMuchError, ValueError, RecursionError):
            if connection is not None:
                connection.close()
            return None

    def _said(self, where: Where, connection: Connection, deadline: float) -> GatewayReport | None:
        """One question. Afterwards the connection is kept or closed, unless this raises."""
        connection.send(_REQUEST, deadline)
        answer = http.client.HTTPResponse(_Received(connection.received(_MOST_BYTES, deadline)), method="GET")  # type: ignore[arg-type]
        answer.begin()
        # In pieces: what is announced is not what is made room for.
        content = b"".join(iter(lambda: answer.read(_PIECE_BYTES), b""))
        if answer.will_close:
            connection.close()
        else:
            self._keep(where, connection)
        if answer.status != http.HTTPStatus.OK:
            return None
        try:
            return GatewayReport.model_validate(json.loads(content))
        except (ValidationError, ValueError, RecursionError):
            return None

    def _taken(self, where: Where) -> Connection | None:
        """The connection that was kept, for nobody else to use. Those that were not used for long are closed."""
        now = time.monotonic()
        with self._lock:
            for old in [key for key, (used, _) in self._kept.items() if now - used > _IDLE_SECONDS]:
                self._kept.pop(old)[1].close()
            found = self._kept.pop(where, None)
        return found[1] if found else None

    def _keep(self, where: Where, connection: Connection) -> None:
        with self._lock:
            before = self._kept.pop(where, None)
            self._kept[where] = time.monotonic(), connection
        if before is not None:
            before[1].close()


class _Received:
    """What an HTTP response reads from, in place of a socket."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file

    def makefile(self, mode: str) -> io.BufferedReader:
        """The file; `mode` is always "rb"."""
        return self._file


def merged(reports: Sequence[GatewayReport]) -> GatewayReport | None:
    """Counts of sequences and tokens a second are added; a route serves if it serves anywhere; the other figures are those of the gateway
    with the most requests.

    The revision is what all agree on: while one of them still has the old route, the new one is not yet everywhere.
    """
    if not reports:
        return None
    if len(reports) == 1:
        return reports[0]
    routes: dict[str, RouteState] = {}
    failing: dict[str, Any] = {}
    for report in reports:
        for revision, route in report.routes.items():
            before = routes.get(revision, RouteState(in_flight=0, state=route.state))
            state = "serving" if "serving" in (before.state, route.state) else route.state
            routes[revision] = RouteState(in_flight=before.in_flight + route.in_flight, state=state)
        failing.update(report.failing)
    revisions = {report.revision for report in reports}
    observed = max((report.observed for report in reports), key=lambda observed: observed.requests)
    came = [report.observed.arrived for report in reports]
    tokens = [report.observed.tokens_per_second for report in reports if report.observed.tokens_per_second is not None]
    return GatewayReport(
        revision=revisions.pop() if len(revisions) == 1 else None,
        routes=routes,
        queued=_sum([report.queued for report in reports]),
        held=_sum([report.held for report in reports]),
        observed=observed.model_copy(update={"arrived": _sum(came), **({"tokens_per_second": sum(tokens)} if tokens else {})}),
        failing=failing,
        verification=Verified(
            sampled=sum(report.verification.sampled for report in reports),
            checked_tokens=sum(report.verification.checked_tokens for report in reports),
            skipped=sum(report.verification.skipped for report in reports),
            failed={name: failed for report in reports for name, failed in report.verification.failed.items()},
        ),
        filter=together([report.filter for report in reports if report.filter is not None]),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    """The sum; None where one of them is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _lives(pod: Manifest) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") == "Running"


def _serves(pod: Manifest) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or ()}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"
