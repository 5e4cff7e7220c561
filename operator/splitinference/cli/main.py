"""`splitinference` and `kubectl split`: one command with verbs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from splitinference import __version__

VERBS = {
    "plan": "what the planner would do, and why (changes nothing)",
    "explain": "why this plan and no other",
    "status": "the plan that serves, stage by stage",
    "history": "the last ten decisions and why",
    "ui": "a page with nodes, pipelines and decisions, in your browser (changes nothing)",
    "simulate": "simulate policies on a trace",
    "bench": "measure the planner, the data plane, privacy, verification, or the operator's own cost",
    "digest": "the digest of a model's folder, for spec.model.digest",
    "calibrate": "the cost model's error on observed stage times, and factors",
}
"""Every verb with its help. A verb's module is loaded only if it is asked for: all together take a second."""
MODULES = {"plan": "plan.arguments", "bench": "bench.verbs"}
"""Where a verb's arguments are, if not in the module of its name."""


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line: the verb that `argv` asks for with its arguments, the others by name and help."""
    result = argparse.ArgumentParser(prog=_name(), description="Serve a large model in segments over unequal, changing nodes.")
    result.add_argument("--version", action="version", version=__version__)
    verbs = result.add_subparsers(dest="verb", required=True, metavar="VERB")
    asked = next((word for word in argv if not word.startswith("-")), None)
    for verb, words in VERBS.items():
        if verb == asked:
            import_module(f"splitinference.cli.{MODULES.get(verb, verb)}").register(verbs)
        else:
            verbs.add_parser(verb, help=words)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the answer is the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    args = parser(argv).parse_args(argv)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _name() -> str:
    called = os.path.basename(sys.argv[0])
    return "kubectl split" if called.startswith("kubectl-split") else "splitinference"


if __name__ == "__main__":
    sys.exit(main())
