"""`splitinference` and `kubectl split`: one command with verbs."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from splitinference import __version__

VERBS = ("plan", "explain", "status", "history", "simulate", "bench", "calibrate")


def parser() -> argparse.ArgumentParser:
    """The command line with all verbs."""
    result = argparse.ArgumentParser(prog=_name(), description="Serve a large model in segments over unequal, changing nodes.")
    result.add_argument("--version", action="version", version=__version__)
    verbs = result.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        import_module(f"splitinference.cli.{verb}").register(verbs)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the answer is the exit status."""
    args = parser().parse_args(argv)
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
