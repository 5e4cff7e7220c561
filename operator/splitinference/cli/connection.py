"""The cluster that a command is about, as kubectl's own options name it, and what commands read there."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import click

from splitinference.cli.errors import SplitError, in_sentences

Json = Mapping[str, Any]
Command = TypeVar("Command", bound=Callable[..., Any])
INSTANCE, MANAGED_BY, COMPONENT = "app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/component"


@dataclass(frozen=True)
class Connection:
    """Which cluster and which namespace. Nothing is read before it is asked for. `namespace` "": all namespaces."""

    kubeconfig: str | None
    context: str | None
    chosen_namespace: str | None
    timeout_seconds: float
    all_namespaces: bool = False

    @cached_property
    def namespace(self) -> str:
        """The namespace that was named, else the context's."""
        from splitinference.adapters.kubernetes.client import current_namespace

        if self.all_namespaces:
            return ""
        return self.chosen_namespace or current_namespace(self.kubeconfig, self.context)

    @cached_property
    def cluster(self) -> Any:
        """The API server, with the methods of KubeCluster. Raises SplitError where no kubeconfig can be used."""
        from splitinference.adapters.kubernetes.user import UserCluster, connect_user

        with in_sentences():
            return UserCluster(connect_user(self.kubeconfig, self.context), self.timeout_seconds)

    def resources(self, name: str | None) -> Sequence[Json]:
        """The resource of this name, or all of the namespace. Raises SplitError where there is none."""
        with in_sentences():
            if name is None:
                found: Sequence[Json] = self.cluster.in_namespace("SplitInference", self.namespace)
                if not found:
                    where = f"in the namespace {self.namespace}" if self.namespace else "in this cluster"
                    fix = "Look in all namespaces: add -A" if self.namespace else "Make one: docs/how-to/serve-a-model.md"
                    raise SplitError(f"There is no SplitInference {where}.", fix)
                return found
            if not self.namespace:
                raise SplitError("A name is in one namespace: use -n instead of -A.")
            one = self.cluster.split_inference(self.namespace, name)
            if one is None:
                raise self._unknown(name)
            return [one]

    def _unknown(self, name: str) -> SplitError:
        """That there is no such resource, with names that are near, and with where that name is."""
        from splitinference.controller.ports import RefusedError, UnavailableError

        try:
            found = self.cluster.in_namespace("SplitInference", "")
        except (RefusedError, UnavailableError):  # the rights may end at the namespace
            found = self.cluster.in_namespace("SplitInference", self.namespace)
        pairs = [(str(about.get("namespace", "")), str(about["name"])) for about in (one["metadata"] for one in found)]
        elsewhere = sorted(namespace for namespace, other in pairs if other == name)
        here = [other for namespace, other in pairs if namespace == self.namespace]
        fix = ""
        if near := difflib.get_close_matches(name, here, 3, 0.5):
            fix = f"Did you mean {' or '.join(near)}?"
        elif elsewhere:
            fix = f"There is one in {', '.join(elsewhere[:3])}: add -n {elsewhere[0]}"
        elif here:
            fix = f"There are: {', '.join(sorted(here)[:10])}"
        return SplitError(f"There is no SplitInference {name} in the namespace {self.namespace}.", fix)

    def pods(self, name: str) -> Sequence[Json]:
        """Our pods of one resource."""
        found: Sequence[Json] = self.cluster.in_namespace("Pod", self.namespace, f"{MANAGED_BY}=splitinference,{INSTANCE}={name}")
        return found


def connection_options(command: Command) -> Command:
    """kubectl's own options that say which cluster; the function gets a Connection as `connection`."""
    options = [
        click.option("-n", "--namespace", help="The namespace; the context's if none is given.", shell_complete=_namespaces),
        click.option("--context", help="The kubeconfig's context; the current one if none is given.", shell_complete=_contexts),
        click.option("--kubeconfig", type=click.Path(), help="The kubeconfig file; KUBECONFIG or ~/.kube/config if none is given."),
        click.option(
            "--request-timeout", type=click.FloatRange(0.1, 3600), default=10.0, show_default=True, metavar="SECONDS",
            help="How long to wait for each answer of the API server.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def connection_of(options: dict[str, Any]) -> Connection:
    """Take the options of `connection_options` out of a command's arguments."""
    return Connection(
        kubeconfig=options.pop("kubeconfig"),
        context=options.pop("context"),
        chosen_namespace=options.pop("namespace"),
        timeout_seconds=options.pop("request_timeout"),
        all_namespaces=options.pop("all_namespaces", False),
    )


# --- completion ----------------------------------------------------------------------------------------------------------------------

_COMPLETION_SECONDS = 2.0


def _asked(ctx: click.Context, read: Callable[[Connection], list[str]], incomplete: str) -> list[str]:
    """What `read` finds and begins so; nothing where the cluster cannot be asked."""
    given = ctx.params
    connection = Connection(
        given.get("kubeconfig"), given.get("context"), given.get("namespace"), _COMPLETION_SECONDS, bool(given.get("all_namespaces"))
    )
    try:
        with in_sentences():
            return sorted(name for name in read(connection) if name.startswith(incomplete))
    except SplitError:
        return []


def complete_names(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of SplitInferences."""
    return _asked(
        ctx, lambda c: [str(one["metadata"]["name"]) for one in c.cluster.in_namespace("SplitInference", c.namespace)], incomplete
    )


def complete_nodes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Names of nodes."""
    return _asked(ctx, lambda c: [str(one["metadata"]["name"]) for one in c.cluster.nodes()], incomplete)


def _namespaces(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    return _asked(ctx, lambda c: list(c.cluster.namespaces()), incomplete)


def _contexts(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    from splitinference.adapters.kubernetes.user import contexts

    return [name for name in contexts(ctx.params.get("kubeconfig")) if name.startswith(incomplete)]
