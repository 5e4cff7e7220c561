"""What goes wrong between a user and a cluster, as a sentence and the command that mends it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import click

from splitinference.controller.ports import RefusedError, UnavailableError

_FORBIDDEN = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>\w+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)")?'
)
_LONGEST = 400
INSTALL = "helm install splitinference charts/splitinference -n splitinference-system --create-namespace"
CRD = "kubectl apply --server-side -f crds/splitinference.yaml"


class SplitError(click.ClickException):
    """An error with what to do about it. `fix` is a command or a sentence; empty: nothing is known that helps."""

    def __init__(self, message: str, fix: str = "") -> None:
        """`message` is shown in one line."""
        super().__init__(one_line(message))
        self.fix = fix

    def format_message(self) -> str:
        """Message and fix."""
        return f"{self.message}\n{self.fix}" if self.fix else self.message


def one_line(text: str) -> str:
    """Text from elsewhere as one line: without markup, control characters, and without what is too long to be read."""
    plain = re.sub(r"<(style|script)\b.*?</\1>|<[^<>]*>", " ", text, flags=re.DOTALL | re.IGNORECASE)
    plain = " ".join("".join(c if c.isprintable() else " " for c in plain).split())
    return plain if len(plain) <= _LONGEST else plain[: _LONGEST - 1] + "…"


@contextmanager
def in_sentences() -> Iterator[None]:
    """Errors of the cluster inside the block come out as SplitError."""
    try:
        yield
    except (RefusedError, UnavailableError) as error:
        raise from_cluster(error) from error


def from_cluster(error: RefusedError | UnavailableError) -> SplitError:
    """The sentence and the fix for what the API server said, or for its silence."""
    text = str(error)
    if found := _FORBIDDEN.search(text):
        return SplitError(f"You may not do this: {found[0]}.", grant(found.groupdict()))
    if "is not known to the API server" in text and "splitinferences" in text:
        return SplitError("This cluster does not know SplitInference: its CRD is not installed.", f"Install it: {INSTALL}")
    if isinstance(error, RefusedError):
        return SplitError(f"The API server refused this: {text}")
    return SplitError(text, _way_out(text))


def _way_out(text: str) -> str:
    if " with 401" in text:
        return "Your credentials are not accepted. Log in again, or choose another context: kubectl config get-contexts"
    if "not JSON" in text:
        return "Something else answers at this address, such as a proxy or a login page. Check it: kubectl config view --minify"
    if "timed out" in text or "Timeout" in text or "timeout" in text:
        return "Wait longer with --request-timeout 60, or check the server: kubectl get --raw /readyz"
    if "did not answer" in text:
        return "Is the cluster running, and is this the right one? kubectl cluster-info; kubectl config current-context"
    if "contexts list" in text:
        return "See: kubectl config get-contexts"
    if "kubeconfig" in text:
        return "Name one with --kubeconfig or KUBECONFIG: kubectl config view"
    return ""


def grant(missing: dict[str, str]) -> str:
    """The commands by which an administrator grants what `missing` names: user, verb, resource, group, namespace."""
    user, namespace = missing.get("user") or "", missing.get("namespace") or ""
    kind, _, subresource = (missing.get("resource") or "").partition("/")
    group = f".{missing['group']}" if missing.get("group") else ""
    resource = f"{kind}{group}" + (f"/{subresource}" if subresource else "")
    verb = missing.get("verb") or "get"
    verbs = "get,list,watch" if verb in ("get", "list", "watch") else verb
    name = f"split-{verb if verbs == verb else 'view'}-{kind}" + (f"-{subresource}" if subresource else "")
    account = re.fullmatch(r"system:serviceaccount:([^:]+):([^:]+)", user)
    subject = f"--serviceaccount={account[1]}:{account[2]}" if account else f"--user='{user}'"
    if namespace:
        role = f"kubectl create role {name} -n {namespace} --verb={verbs} --resource={resource}"
        binding = f"kubectl create rolebinding {name} -n {namespace} --role={name} {subject}"
    else:
        role = f"kubectl create clusterrole {name} --verb={verbs} --resource={resource}"
        binding = f"kubectl create clusterrolebinding {name} --clusterrole={name} {subject}"
    return f"An administrator grants it with:\n  {role}\n  {binding}"
