"""Which SplitInference a command is about, and how it is read from the cluster."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from splitinference.adapters.kubernetes.client import KubeCluster, connect, current_namespace
from splitinference.controller.ports import RefusedError, UnavailableError

TIMEOUT_SECONDS = 10.0


class NotFoundError(Exception):
    """There is no such resource; the message says where was looked."""


Show = Callable[[Mapping[str, Any], Console], None]


def add_command(subparsers: "argparse._SubParsersAction[Any]", name: str, summary: str, description: str | None, show: Show) -> None:
    """A command that shows each of the resources that its arguments name; exit status 1 where there is nothing to show."""

    def run(args: argparse.Namespace) -> int:
        found = read_or_say(args)
        for resource in found or ():
            show(resource, console())
        return 1 if found is None else 0

    parser = subparsers.add_parser(name, help=summary, description=description)
    _add_arguments(parser)
    parser.set_defaults(run=run)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    """Name and namespace, as kubectl has them."""
    parser.add_argument("name", nargs="?", help="the SplitInference; all of the namespace if none is given")
    parser.add_argument("-n", "--namespace", help="its namespace; the context's if none is given")
    parser.add_argument("--kubeconfig", help="kubeconfig file; KUBECONFIG or ~/.kube/config if none is given")


def read(args: argparse.Namespace) -> Sequence[Mapping[str, Any]]:
    """The resources that the arguments name. Raises NotFoundError, UnavailableError, RefusedError."""
    namespace = args.namespace or current_namespace(args.kubeconfig)
    cluster = KubeCluster(connect(args.kubeconfig), TIMEOUT_SECONDS, (namespace,))
    if args.name is None:
        found = cluster.split_inferences()
        if not found:
            raise NotFoundError(f"There is no SplitInference in the namespace {namespace}.")
        return found
    one = cluster.split_inference(namespace, args.name)
    if one is None:
        raise NotFoundError(f"There is no SplitInference {args.name} in the namespace {namespace}.")
    return [one]


def read_or_say(args: argparse.Namespace) -> Sequence[Mapping[str, Any]] | None:
    """As `read`; what is wrong goes to stderr in a sentence, and None comes back."""
    try:
        return read(args)
    except (NotFoundError, UnavailableError, RefusedError) as error:
        sys.stderr.write(f"{error}\n")
        return None


def console() -> Console:
    """For people where there is a terminal; else wide, so that no column is cut short for a program."""
    return Console(width=None if sys.stdout.isatty() else 200, highlight=False)


def status_of(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    """Its status; empty while the operator has not seen it."""
    found: Mapping[str, Any] = resource.get("status") or {}
    return found


def title(resource: Mapping[str, Any]) -> str:
    """namespace/name."""
    return f"{resource['metadata']['namespace']}/{resource['metadata']['name']}"
