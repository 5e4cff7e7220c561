"""`splitinference` and `kubectl split`: one command with verbs. A verb's module is loaded only if the verb is asked for."""

import os
import sys
from collections.abc import Sequence

import click

from splitinference import __version__
from splitinference.cli.lazy import LazyGroup, Verb

VERBS = {
    "status": Verb("what serves, drawn: pipelines, nodes, links, and what moves", "live.status"),
    "explain": Verb("why here, why not there, why now, why not", "live.explain"),
    "history": Verb("the last ten decisions and why", "live.history"),
    "diff": Verb("what serves beside what is proposed, or what it moves to", "live.diff"),
    "approve": Verb("adopt the plan that is proposed in mode Advisory", "live.answer:approve"),
    "reject": Verb("do not adopt the proposed plan", "live.answer:reject"),
    "drain": Verb("move all segments away from a node; --undo takes it back", "live.drain"),
    "logs": Verb("logs of all segments and the gateway, merged", "live.logs"),
    "doctor": Verb("what is missing, and the command that fixes it", "doctor"),
    "ui": Verb("a page with nodes, pipelines and decisions, in your browser (changes nothing)", "ui", argparse=True),
    "plan": Verb("what the planner would do, and why (changes nothing)", "plan.arguments", argparse=True),
    "bench": Verb("measure the planner, the data plane, privacy, verification, or the operator's own cost", "bench.verbs", argparse=True),
    "simulate": Verb("simulate policies on a trace", "simulate", argparse=True),
    "calibrate": Verb("the cost model's error on observed stage times, and factors", "calibrate", argparse=True),
    "filter": Verb("train a filter that skips inputs of a generic chain, or measure one", "filter.verbs", argparse=True),
    "secret": Verb("compute a small generic chain on two nodes that cannot read its inputs", "secret.verbs", argparse=True),
    "digest": Verb("the digest of a model's folder, for spec.model.digest", "digest", argparse=True),
    "encrypt-model": Verb("encrypt a model's weights for pods that get the key from a key broker", "encrypt_model", argparse=True),
    "completion": Verb("shell completion for bash, zsh and fish", "completion"),
}
"""Every verb with its help and its module. Those with `argparse` take their arguments by argparse, as they did before click."""

COMPLETE = "_SPLITINFERENCE_COMPLETE"
"""The variable by which a shell asks for completions."""

DEBUG = "SPLITINFERENCE_DEBUG"


def program() -> str:
    """How the user called this: `kubectl split` or `splitinference`."""
    called = os.path.basename(sys.argv[0])
    return "kubectl split" if called.startswith(("kubectl-split", "kubectl_complete-split")) else "splitinference"


cli = LazyGroup(
    name="splitinference",
    verbs=VERBS,
    help="Serve a large model in segments over unequal, changing nodes.",
    subcommand_metavar="VERB [ARGUMENTS]",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
click.version_option(__version__, message="%(version)s")(cli)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; the answer is the exit status: 0 done, 1 not possible, 2 wrong arguments, 130 interrupted. Errors are sentences."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        found = cli.main(arguments, prog_name=program(), complete_var=COMPLETE, standalone_mode=False)
        return found if isinstance(found, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        words = " ".join(str(error).split())[:300]
        sys.stderr.write(f"Error: this is a bug: {type(error).__name__}: {words}\nTo see where, run again with {DEBUG}=1.\n")
        return 70


if __name__ == "__main__":
    sys.exit(main())
