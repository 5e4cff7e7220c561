"""Checks of the API server: version, clocks, rights, the CRD, metrics-server."""

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from splitinference.cli.connection import Connection
from splitinference.cli.doctor.check import BAD, GOOD, UNKNOWN, WARN, Check
from splitinference.cli.doctor.crd import all_gaps
from splitinference.cli.errors import CRD, INSTALL, from_cluster, grant
from splitinference.controller.api.group import GROUP, PLURAL
from splitinference.controller.ports import RefusedError, UnavailableError

OLDEST = (1, 30)
"""The oldest minor version of Kubernetes that the chart takes."""
_SKEW_SECONDS = 5.0
_LEASES = "kube-node-lease"
_RIGHTS = (
    ("see resources", "list", GROUP, PLURAL, "", True),
    ("see pods", "list", "", "pods", "", True),
    ("read logs", "get", "", "pods", "log", True),
    ("see routes", "get", "", "configmaps", "", True),
    ("see nodes", "list", "", "nodes", "", False),
    ("approve and reject", "patch", GROUP, PLURAL, "", True),
    ("drain", "patch", "", "nodes", "", False),
)
"""What verbs need: what for, verb, group, resource, subresource, whether in a namespace."""


def check_version(connection: Connection) -> Iterator[Check]:
    """The API server answers, and is new enough."""
    version = connection.cluster.version()
    digits = version.lstrip("v").split(".")[:2]
    known = tuple(int(part) for part in digits) if len(digits) == 2 and all(part.isdecimal() for part in digits) else None
    if known is None:
        yield Check("Kubernetes", UNKNOWN, f"the API server's version is {version or 'not said'}")
    elif known < OLDEST:
        yield Check(
            "Kubernetes", BAD, f"{version} is older than {OLDEST[0]}.{OLDEST[1]}, the oldest that the chart takes", "Upgrade the cluster."
        )
    else:
        yield Check("Kubernetes", GOOD, version)


def check_clocks(connection: Connection) -> Iterator[Check]:
    """This machine's clock and those of the nodes, against the API server's."""
    date, took = connection.cluster.server_date()
    try:
        server = parsedate_to_datetime(date)
    except (TypeError, ValueError):
        yield Check("clock", UNKNOWN, "the API server does not say its time")
        return
    here = (datetime.now(UTC) - server).total_seconds()
    if abs(here) > _SKEW_SECONDS + took:
        word = "ahead of" if here > 0 else "behind"
        yield Check(
            "clock",
            WARN,
            f"this machine is {abs(here):.0f} s {word} the API server; ages here are wrong by that",
            "timedatectl set-ntp true",
        )
    else:
        yield Check("clock", GOOD, "this machine and the API server agree")
    yield from _node_clocks(connection, server)


def _node_clocks(connection: Connection, server: datetime) -> Iterator[Check]:
    """A kubelet writes its lease by its own clock. One that is late looks like one that is silent, so only those ahead are certain."""
    try:
        leases = connection.cluster.in_namespace("Lease", _LEASES)
    except (RefusedError, UnavailableError):
        return
    ahead = []
    for lease in leases:
        try:
            renewed = datetime.fromisoformat(str((lease.get("spec") or {}).get("renewTime")).replace("Z", "+00:00"))
        except ValueError:
            continue
        if (renewed - server).total_seconds() > 2 * _SKEW_SECONDS:
            ahead.append(f"{lease['metadata']['name']} ({(renewed - server).total_seconds():.0f} s)")
    if ahead:
        message = f"clocks of nodes are ahead: {', '.join(sorted(ahead)[:5])}{' …' if len(ahead) > 5 else ''}; certificates and ages suffer"
        yield Check("clocks of nodes", WARN, message, "On each: timedatectl set-ntp true")


def check_crd(connection: Connection) -> Iterator[Check]:
    """The CRD is there and knows all fields."""
    try:
        crd: Any = connection.cluster.get("CustomResourceDefinition", "", f"{PLURAL}.{GROUP}")
    except RefusedError as error:
        known = connection.cluster.answers(f"/apis/{GROUP}")
        said = from_cluster(error)
        yield Check(
            "CRD",
            UNKNOWN if known else BAD,
            "it is there, but you may not read it" if known else "it is not installed",
            said.fix if known else INSTALL,
        )
        return
    if crd is None:
        yield Check("CRD", BAD, "it is not installed", f"{CRD}; {INSTALL}")
    elif missing := all_gaps(crd):
        yield Check("CRD", BAD, f"it is older than this plugin and drops {', '.join(missing)}", CRD)
    else:
        yield Check("CRD", GOOD, "it has every field that this plugin knows")


def check_rights(connection: Connection) -> Iterator[Check]:
    """What this user may do."""
    me, lacking = connection.cluster.me(), []
    for what, verb, group, resource, subresource, namespaced in _RIGHTS:
        namespace = connection.namespace if namespaced else ""
        if not connection.cluster.may(verb, group, resource, namespace, subresource):
            named = resource + (f"/{subresource}" if subresource else "")
            missing = {"user": me or "YOU", "verb": verb, "resource": named, "group": group, "namespace": namespace}
            lacking.append(
                Check(f"right to {what}", WARN, f"you may not {verb} {named}{'' if not namespace else f' in {namespace}'}", grant(missing))
            )
    yield from lacking or [Check("rights", GOOD, f"{me or 'you'} may use every verb of this plugin")]


def check_metrics_server(connection: Connection) -> Iterator[Check]:
    """metrics-server is not needed, but users look for it."""
    if connection.cluster.answers("/apis/metrics.k8s.io/v1beta1"):
        yield Check("metrics-server", GOOD, "it answers; the operator reads Prometheus instead")
    else:
        yield Check("metrics-server", GOOD, "it is absent; the operator does not need it (kubectl top does)")
