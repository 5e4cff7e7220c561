"""The cluster of a session of tests, and its end. `E2E_KEEP=1` leaves it running, for the next run to find; `E2E_NAME` names it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from e2e.cluster import Cluster, Settings
from e2e.cluster.progress import shown

KEEP = os.environ.get("E2E_KEEP") == "1"
SETTINGS = Settings(name=os.environ.get("E2E_NAME", "splitinference-test"))


@contextmanager
def session_cluster() -> Iterator[Cluster]:
    """Not started; with all that was started of it removed afterwards, also when tests fail."""
    with shown() as progress:
        made = Cluster(SETTINGS, progress)
        try:
            yield made
        finally:
            if not KEEP:
                made.down()
