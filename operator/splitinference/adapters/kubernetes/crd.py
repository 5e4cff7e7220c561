"""The CRD as the cluster has it, looked at now and then: somebody may upgrade it while the operator runs."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.api.crd_gaps import gaps_in_words
from splitinference.controller.api.group import GROUP, PLURAL
from splitinference.controller.api.newer_fields import has_newer_fields, spec_schema, without_newer_defaults
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError

log = logging.getLogger(__name__)

_EVERY_SECONDS = 60.0
_SOON_SECONDS = 5.0


class CrdNotes:
    """What is to be said of the CRD, read at most once a minute; every five seconds while resources have fields that neither the operator
    nor the CRD of the last look has. May be used from many threads."""

    def __init__(self, cluster: KubeCluster) -> None:
        self._cluster = cluster
        self._lock = threading.Lock()
        self._read: float | None = None
        self._words = ""
        self._schema: Mapping[str, Any] = {}

    def __call__(self) -> str:
        """In words for a condition; empty where all is well, or where it cannot be read."""
        with self._lock:
            self._look_after(_EVERY_SECONDS)
            return self._words

    def as_known(self, body: Manifest) -> Manifest:
        """The resource without fields that the operator does not know and whose value is the CRD's default. Somebody upgraded the CRD
        before the operator, or rolled back the operator alone."""
        spec = body.get("spec") or {}
        if not has_newer_fields(spec):
            return body
        with self._lock:
            self._look_after(_EVERY_SECONDS)
            left = without_newer_defaults(spec, self._schema)
            if has_newer_fields(left):  # the CRD may be newer than the last look
                self._look_after(_SOON_SECONDS)
                left = without_newer_defaults(spec, self._schema)
        return {**body, "spec": left}

    def _look_after(self, seconds: float) -> None:
        if self._read is None or time.monotonic() - self._read >= seconds:
            self._read = time.monotonic()
            self._look()

    def _look(self) -> None:
        try:
            crd = self._cluster.get("CustomResourceDefinition", "", f"{PLURAL}.{GROUP}")
        except (UnavailableError, RefusedError) as error:
            log.debug("the CRD cannot be read: %s", error)
            return
        self._schema = spec_schema(crd) if crd is not None else {}
        words = gaps_in_words(crd)
        if words and words != self._words:
            log.warning("%s", words)
        self._words = words
