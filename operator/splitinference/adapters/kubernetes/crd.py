"""The CRD as the cluster has it, looked at now and then: somebody may upgrade it while the operator runs."""

import logging
import threading
import time

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.api.crd_gaps import gaps_in_words
from splitinference.controller.api.group import GROUP, PLURAL
from splitinference.controller.ports import RefusedError, UnavailableError

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0


class CrdNotes:
    """What is to be said of the CRD, read at most once a minute. May be used from many threads."""

    def __init__(self, cluster: KubeCluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._read: float | None = None
        self._words = ""

    def __call__(self) -> str:
        """In words for a condition; empty where all is well, or where it cannot be read."""
        with self._lock:
            if self._read is None or time.monotonic() - self._read >= _EVERY_SECONDS:
                self._read = time.monotonic()
                self._look()
            return self._words

    def _look(self) -> None:
        try:
            words = gaps_in_words(self._cluster.get("CustomResourceDefinition", "", f"{PLURAL}.{GROUP}"))
        except (UnavailableError, RefusedError) as error:
            log.debug("the CRD cannot be read: %s", error)
            return
        if words and words != self._words:
            log.warning("%s", words)
        self._words = words
