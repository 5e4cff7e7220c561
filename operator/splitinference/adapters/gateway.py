"""The gateways' own account of their routes: each pod of a gateway is asked at its address, and what they say is added up.

While a gateway is replaced there are two, and what is in flight on either counts. A pod that does not answer, and is being stopped or known
not to be ready, has given up its routes: the streams that it may still have go on by replay.
"""

import http.client
import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from splitinference.controller.gateway import GATEWAY, PORT
from splitinference.controller.objects import COMPONENT
from splitinference.controller.ports import GatewayReport, Manifest, RouteState

Owned = Callable[[str, str, str], Sequence[Manifest]]


class GatewayRoutes:
    """Implements `Gateways`."""

    def __init__(self, owned: Owned, timeout_seconds: float, port: int = PORT) -> None:
        """`owned`: the objects of a kind of one resource, as `Cluster.owned` gives them."""
        self._owned = owned
        self._timeout = timeout_seconds
        self._port = port

    def routes(self, namespace: str, instance: str) -> GatewayReport | None:
        """What all pods of the gateway say together; None where one that should answer does not, or there is none."""
        reports: list[GatewayReport] = []
        for pod in self._owned("Pod", namespace, instance):
            if (pod["metadata"].get("labels") or {}).get(COMPONENT) != GATEWAY or not _lives(pod):
                continue
            report = self._ask(pod["status"]["podIP"])
            if report is not None:
                reports.append(report)
            elif _serves(pod):
                return None
        return merged(reports)

    def _ask(self, address: str) -> GatewayReport | None:
        # Straight to the pod, past whatever proxy the environment names; and this is asked in every pass, so it has to be light.
        connection = http.client.HTTPConnection(address, self._port, timeout=self._timeout)
        try:
            connection.request("GET", "/internal/routes")
            answer = connection.getresponse()
            return GatewayReport.model_validate(json.loads(answer.read())) if answer.status == http.HTTPStatus.OK else None
        except (OSError, http.client.HTTPException, ValidationError, ValueError):
            return None
        finally:
            connection.close()


def merged(reports: Sequence[GatewayReport]) -> GatewayReport | None:
    """In-flight counts and tokens a second are added; a route serves if it serves anywhere; the other figures are those of the gateway with
    the most requests.

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
    tokens = [report.observed.tokens_per_second for report in reports if report.observed.tokens_per_second is not None]
    return GatewayReport(
        revision=revisions.pop() if len(revisions) == 1 else None,
        routes=routes,
        observed=observed.model_copy(update={"tokens_per_second": sum(tokens)} if tokens else {}),
        failing=failing,
    )


def _lives(pod: Manifest) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") == "Running"


def _serves(pod: Manifest) -> bool:
    conditions = {c["type"]: c["status"] for c in pod["status"].get("conditions") or ()}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"
