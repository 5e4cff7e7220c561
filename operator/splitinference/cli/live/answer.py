"""`kubectl split approve` and `reject`: the answer to the plan that mode Advisory proposes, as an annotation that names the offer."""

import time
from collections.abc import Mapping
from typing import Any

import click

from splitinference.cli.connection import Connection, complete_names, connection_of, connection_options
from splitinference.cli.errors import CRD, SplitError, in_sentences

_EVERY_SECONDS = 1.0
_APPROVE, _REJECT = "splitinference.dev/approve", "splitinference.dev/reject"


def _answer_command(verb: str, help_text: str) -> click.Command:
    @click.command(verb, help=help_text)
    @click.argument("name", shell_complete=complete_names)
    @click.option("--revision", help="Only if the proposed plan has this revision (see: kubectl split diff).")
    @click.option("--wait", type=click.FloatRange(0, 86400), default=30.0, show_default=True, metavar="SECONDS",
                  help="How long to wait for the operator's answer; 0: do not wait.")  # fmt: skip
    @connection_options
    def command(name: str, revision: str | None, wait: float, **options: Any) -> int:
        return answer(connection_of(options), verb, name, revision, wait)

    return command


approve = _answer_command(
    "approve",
    """Adopt the plan that is proposed for NAME in mode Advisory.

    The operator checks the plan again on present data. It adopts the plan if it is valid, reachable and still better than what serves.
    """,
)
reject = _answer_command("reject", "Do not adopt the plan that is proposed for NAME. It is not proposed again for 24 hours.")


def answer(connection: Connection, verb: str, name: str, revision: str | None, wait_seconds: float) -> int:
    """Annotate the resource, and say what the operator made of it."""
    resource = connection.resources(name)[0]
    proposal = _proposal(connection, resource)
    offered, identity = str(proposal.get("revision", "")), str(proposal.get("id", ""))
    if revision is not None and revision != offered:
        raise SplitError(f"The proposed plan is {offered} now, not {revision}.", f"Look at it first: kubectl split diff {name}")
    about, key = resource["metadata"], _APPROVE if verb == "approve" else _REJECT
    other = _REJECT if verb == "approve" else _APPROVE
    with in_sentences():
        # With the version that was read: what is approved is what was looked at.
        change = {"metadata": {"annotations": {key: identity, other: None}}}
        connection.cluster.patch("SplitInference", about["namespace"], name, change, str(about["resourceVersion"]))
    said = {"approve": "approved", "reject": "rejected"}[verb]
    click.echo(f"{connection.namespace}/{name}: plan {offered} {said}.")
    return _outcome(connection, name, proposal, said, wait_seconds) if wait_seconds else 0


def _proposal(connection: Connection, resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is offered. Raises SplitError that says why nothing is."""
    name = resource["metadata"]["name"]
    if found := (resource.get("status") or {}).get("proposal"):
        return dict(found)
    mode = str(((resource.get("spec") or {}).get("adaptation") or {}).get("mode") or "Auto")
    if mode != "Advisory":
        fix = f"""kubectl patch si {name} --type merge -p '{{"spec": {{"adaptation": {{"mode": "Advisory"}}}}}}'"""
        raise SplitError(f"{name} has mode {mode}: plans are proposed in mode Advisory only.", fix)
    if _crd_is_old(connection):
        raise SplitError(
            "The CRD in this cluster is older than this plugin: it drops status.proposal.", f"An administrator updates it: {CRD}"
        )
    raise SplitError(f"No plan is proposed for {name}.", f"Why not: kubectl split explain {name}")


def _crd_is_old(connection: Connection) -> bool:
    """Whether the CRD lacks the field; not known (False) without the right to read it."""
    from splitinference.cli.doctor.crd import status_gaps
    from splitinference.controller.ports import RefusedError

    with in_sentences():
        try:
            crd = connection.cluster.get("CustomResourceDefinition", "", "splitinferences.splitinference.dev")
        except RefusedError:
            return False
    return crd is not None and "status.proposal" in status_gaps(crd)


def _outcome(connection: Connection, name: str, proposal: Mapping[str, Any], said: str, wait_seconds: float) -> int:
    """Wait until the operator has withdrawn the offer, and print its decision. Exit status 1: it did not adopt what was approved."""
    until = time.monotonic() + wait_seconds
    while time.monotonic() < until:
        status = connection.resources(name)[0].get("status") or {}
        if (status.get("proposal") or {}).get("id") != proposal.get("id"):
            decision: Mapping[str, Any] = next(iter(status.get("decisions") or ()), {})
            click.echo(f"The operator: {decision.get('reason', 'no decision')}: {decision.get('message', '')}")
            adopted = (status.get("plan") or {}).get("revision") == proposal.get("revision")
            return 0 if adopted or said == "rejected" else 1
        time.sleep(_EVERY_SECONDS)
    raise SplitError(f"The operator has not answered within {wait_seconds:g} s.", "Is it running? kubectl split doctor")
