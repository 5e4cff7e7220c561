"""Who acts: of the replicas of one operator the holder of a Lease, and for a resource the operator that its status names.

Clocks of different machines are never compared. A Lease counts as abandoned when this process has seen it unchanged for its duration, and
the holder stops acting well before that. See docs/decisions/0031-leader-election-and-claims.md.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from splitinference.controller.api.group import DEFAULT_CLASS
from splitinference.controller.ports import Cluster, Manifest, RefusedError, UnavailableError

Seconds = Callable[[], float]
"""A clock that never goes back and goes on while the machine sleeps."""
_LONGEST_LEASE_SECONDS = 60.0


@dataclass(frozen=True)
class Lease:
    """A Lease as the API server has it. `version` changes with every write; `holder` is empty when it was given back."""

    holder: str
    version: str
    duration_seconds: float
    transitions: int = 0


class Leases(Protocol):
    """Reads and writes Leases. All methods raise UnavailableError where the API server does not answer."""

    def read(self, namespace: str, name: str) -> Lease | None:
        """The Lease; None if there is none. Raises RefusedError where it may not be read."""

    def write(self, namespace: str, name: str, holder: str, before: Lease | None) -> Lease | None:
        """Write it with this holder, if it still is as `before` (None: if there is none). None if it is another meanwhile."""


class Watched:
    """Leases of others as they were last seen, and since when they have not changed."""

    def __init__(self, seconds: Seconds) -> None:
        self._seconds = seconds
        self._seen: dict[str, tuple[str, float]] = {}

    def left_seconds(self, name: str, lease: Lease) -> float:
        """For how long its holder must still be believed to act; 0 if it may be taken."""
        if not lease.holder:
            return 0.0
        now = self._seconds()
        version, since = self._seen.get(name, ("", now))
        if version != lease.version:
            since = now
            self._seen[name] = lease.version, now
        return max(0.0, since + min(lease.duration_seconds, _LONGEST_LEASE_SECONDS) - now)


class Leadership:
    """One process's part in an election. `valid_seconds`: so long after a renewal was begun this process may begin to write."""

    def __init__(self, leases: Leases, lease: tuple[str, str], identity: str, valid_seconds: float, seconds: Seconds) -> None:
        self._leases = leases
        self._name = lease
        self._identity = identity
        self._valid_seconds = valid_seconds
        self._seconds = seconds
        self._watched = Watched(seconds)
        self._held: Lease | None = None
        self._valid_until = float("-inf")
        self._lock = threading.Lock()
        self.lost = False

    def leads(self) -> bool:
        """Whether this process may act now."""
        return not self.lost and self._seconds() < self._valid_until

    def must_lead(self) -> None:
        """Raises UnavailableError where it may not."""
        if not self.leads():
            raise UnavailableError("this operator does not hold its Lease now, so it changes nothing")

    def take(self) -> float | None:
        """Try to become the leader. None if this process is now; else after how many seconds the Lease may become free at the earliest."""
        with self._lock:
            began = self._seconds()
            found = self._leases.read(*self._name)
            if found is not None and found.holder != self._identity and (left := self._watched.left_seconds("", found)) > 0:
                return left
            return None if self._write(began, self._identity, found) else 0.0

    def renew(self) -> None:
        """Stay the leader. Sets `lost` when somebody else has the Lease; raises UnavailableError where nobody knows."""
        with self._lock:
            began = self._seconds()
            if self._held is not None and self._write(began, self._identity, self._held):
                return
            found = self._leases.read(*self._name)
            if found is not None and found.holder != self._identity:
                self.lost = True
                return
            self._write(began, self._identity, found)

    def release(self) -> None:
        """Give the Lease back, so that the next leader need not wait. Only when nothing is being written any more."""
        with self._lock:
            self._valid_until = float("-inf")
            if self._held is not None and not self.lost:
                self._leases.write(*self._name, "", self._held)
            self._held = None

    def _write(self, began: float, holder: str, before: Lease | None) -> bool:
        written = self._leases.write(*self._name, holder, before)
        if written is None:
            return False
        self._held, self._valid_until = written, began + self._valid_seconds
        return True


@dataclass(frozen=True)
class Claims:
    """Which resources this operator serves: those of its class that no other operator serves. `mine` names its Lease as
    `<namespace>/<name>`, and is empty where it has none: then it claims nothing, and leaves alone what others have claimed."""

    mine: str
    operator_class: str
    cluster: Cluster
    leases: Leases
    watched: Watched

    def serves(self, body: Manifest) -> bool:
        """Whether to make a pass for this resource. Claims it if it is free: atomically, as the status is written at the version that was
        read. Raises UnavailableError."""
        wanted = str((body.get("spec") or {}).get("operatorClass") or DEFAULT_CLASS)
        claimed = str((body.get("status") or {}).get("operator") or "")
        if wanted != self.operator_class:
            if claimed and claimed == self.mine:
                self._write(body, None)
            return False
        if claimed == self.mine:
            return True
        if claimed and self._acts(claimed):
            message = (
                f"The operator with the Lease {claimed} serves this resource, so the one with the Lease {self.mine or '(none)'} leaves it "
                "alone. Give one of the two releases another operatorClass, or uninstall it."
            )
            self.cluster.event(body, "Warning", "ServedByAnother", message)
            return False
        if self.mine:
            self._write(body, self.mine)
        return True

    def _write(self, body: Manifest, operator: str | None) -> None:
        about = body["metadata"]
        status = {"operator": operator}
        self.cluster.patch_status(str(about["namespace"]), str(about["name"]), status, str(about.get("resourceVersion", "")))

    def _acts(self, claimed: str) -> bool:
        """Whether the operator with this Lease is alive. One whose Lease may not be read is taken to be."""
        namespace, _, name = claimed.partition("/")
        try:
            lease = self.leases.read(namespace, name)
        except RefusedError:
            return True
        return lease is not None and self.watched.left_seconds(claimed, lease) > 0
