"""`python -m e2e.conformance [CLIENT …]`: unchanged clients against gateways with real segments, and what became of each model of the
corpus, as tables.

Each client has a virtual environment of its own in the cache, made of a list of packages with hashes. One that cannot be installed is a row
that says so. The exit status is 1 where a feature or a model failed. `E2E_KEEP=1` leaves the engine running.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster import Cluster
from e2e.cluster.settings import REPOSITORY
from e2e.conformance import corpus
from e2e.conformance.clients import CLIENTS, Client
from e2e.conformance.corpus import Fate, compared, fates
from e2e.conformance.environments import NotInstalledError, program
from e2e.conformance.report import Outcome, page, table
from e2e.conformance.run import outcomes
from e2e.conformance.stack import Stack, standing
from e2e.session import session_cluster

PAGE = REPOSITORY / "docs/reference/conformance.md"
CORPUS_PAGE = REPOSITORY / "docs/reference/corpus.md"


def main(arguments: Sequence[str]) -> int:
    """Install, run, print; write the page where all clients ran."""
    parser = argparse.ArgumentParser(prog="python -m e2e.conformance", description="unchanged clients against the gateway")
    names = [client.name for client in CLIENTS]
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(names)}; all by default")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the table of clients goes when all clients run")
    parser.add_argument("--models", action="store_true", help="the corpus of models alone")
    parser.add_argument("--corpus-page", type=Path, default=CORPUS_PAGE, help="where the table of models goes")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.clients if name not in names]:
        parser.error(f"no client is named {unknown[0]!r}; there are {', '.join(names)}")
    wanted = [client for client in CLIENTS if not options.clients or client.name in options.clients]
    found: list[Outcome] = []
    became: list[Fate] = []
    with session_cluster() as cluster:
        if not options.models:
            found = _clients(cluster, wanted)
        if options.models or not options.clients:
            with cluster.progress.step("models of the corpus"):
                became = fates(compared(cluster))
    if found:
        sys.stdout.write("\n" + table(found) + "\n")
    if found and not options.clients:
        options.page.write_text(page(found))
    if became:
        sys.stdout.write("\n" + corpus.table(became) + "\n")
        options.corpus_page.write_text(corpus.page(became))
    failed = [result for result in (*(row.result for row in found), *(fate.result for fate in became)) if result == "failed"]
    failed += [fate.model for fate in became if fate.logits == corpus.NOT_RUN]
    total = len(found) + len(became)
    sys.stdout.write(f"\n{total - len(failed)} of {total} did not fail\n")
    return 1 if failed else 0


def _clients(cluster: Cluster, wanted: Sequence[Client]) -> list[Outcome]:
    found: list[Outcome] = []
    with standing(cluster) as stack:
        for client in wanted:
            with cluster.progress.step(client.name):
                found += _tried(client, stack, cluster.settings.cache)
    return found


def _tried(client: Client, stack: Stack, cache: Path) -> list[Outcome]:
    try:
        command = program(client, cache)
    except NotInstalledError as error:
        return [Outcome(client.name, "", "-", "not installed", str(error))]
    return outcomes(client, command, stack.environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
