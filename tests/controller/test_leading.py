"""Elections in virtual time: never two that act, a takeover when the holder is gone, none while it is only out of sight for a moment."""

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from splitinference.controller.ports import RefusedError, UnavailableError
from splitinference.controller.runtime.leadership import Claims, Leadership, Lease, Watched

NAME = ("ops", "operator")
DURATION, CALL = 10.0, 5.0


@dataclass
class Time:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Leases:
    """The API server's Leases; `away`: identities that cannot reach it."""

    there: dict[tuple[str, str], Lease] = field(default_factory=dict)
    version: int = 0
    away: bool = False
    hidden: bool = False

    def read(self, namespace: str, name: str) -> Lease | None:
        if self.away:
            raise UnavailableError("no route to host")
        if self.hidden:
            raise RefusedError("leases.coordination.k8s.io is forbidden")
        return self.there.get((namespace, name))

    def write(self, namespace: str, name: str, holder: str, before: Lease | None) -> Lease | None:
        now = self.read(namespace, name)
        if (now.version if now else None) != (before.version if before else None):
            return None
        self.version += 1
        changed = before is None or before.holder != holder
        self.there[namespace, name] = Lease(
            holder, str(self.version), DURATION if holder else 1, (before.transitions if before else 0) + changed
        )
        return self.there[namespace, name]


class Side:
    """One replica's view of the same Leases: it may be cut off alone."""

    def __init__(self, leases: Leases, identity: str, time: Time) -> None:
        self.leases, self.away = leases, False
        self.leadership = Leadership(self, NAME, identity, DURATION - CALL, time)

    def read(self, namespace: str, name: str) -> Lease | None:
        if self.away:
            raise UnavailableError("cut off")
        return self.leases.read(namespace, name)

    def write(self, namespace: str, name: str, holder: str, before: Lease | None) -> Lease | None:
        if self.away:
            raise UnavailableError("cut off")
        return self.leases.write(namespace, name, holder, before)

    def turn(self) -> None:
        """What its thread does every two seconds."""
        try:
            if self.leadership._held is None:
                self.leadership.take()
            elif not self.leadership.lost:
                self.leadership.renew()
        except UnavailableError:
            pass


def two() -> tuple[Time, Leases, Side, Side]:
    time, leases = Time(), Leases()
    return time, leases, Side(leases, "a", time), Side(leases, "b", time)


def test_the_first_leads_and_the_second_stands_by_as_long_as_it_renews():
    time, _, a, b = two()
    for _ in range(100):
        a.turn()
        b.turn()
        assert (a.leadership.leads(), b.leadership.leads()) == (True, False)
        time.now += 2


def test_a_killed_leader_is_replaced_within_its_duration_and_two_looks():
    time, _, a, b = two()
    a.turn()
    b.turn()
    killed = time.now
    while not b.leadership.leads():
        time.now += 2
        b.turn()
    assert time.now - killed <= DURATION + 2


def test_a_lease_that_is_given_back_is_taken_at_once():
    _, leases, a, b = two()
    a.turn()
    b.turn()
    a.leadership.release()
    assert leases.there[NAME].holder == ""
    assert not a.leadership.leads()
    assert b.leadership.take() is None
    assert b.leadership.leads()


def test_who_cannot_renew_stops_well_before_another_may_take_over():
    time, _, a, b = two()
    a.turn()
    b.turn()
    a.away = True
    while a.leadership.leads():
        time.now += 0.5
        b.turn()
        assert not b.leadership.leads()
    with pytest.raises(UnavailableError, match="does not hold its Lease"):
        a.leadership.must_lead()
    while not b.leadership.leads():
        time.now += 0.5
        b.turn()
    a.away = False
    a.turn()
    assert a.leadership.lost
    assert not a.leadership.leads()


def test_who_could_not_renew_goes_on_when_nobody_took_over():
    time, leases, a, _ = two()
    a.turn()
    leases.away = True  # the API server restarts: nobody else can take it either
    for _ in range(60):
        time.now += 2
        a.turn()
    assert not a.leadership.leads()
    leases.away = False
    a.turn()
    assert a.leadership.leads()
    assert not a.leadership.lost


def test_a_lease_that_was_deleted_is_made_again():
    _, leases, a, _ = two()
    a.turn()
    leases.there.clear()
    a.turn()
    assert leases.there[NAME].holder == "a"
    assert a.leadership.leads()


def test_a_label_that_somebody_puts_on_the_lease_costs_no_leadership():
    _, leases, a, _ = two()
    a.turn()
    held = leases.there[NAME]
    leases.there[NAME] = Lease(held.holder, "900", held.duration_seconds, held.transitions)
    a.turn()
    assert a.leadership.leads()


@pytest.mark.parametrize("seed", range(40))
def test_never_do_two_act(seed: int):
    """Three replicas, each cut off, frozen and started anew at random, and clocks in step only in how fast they go."""
    chance, time, leases = random.Random(seed), Time(), Leases()
    sides = [Side(leases, str(n), time) for n in range(3)]
    frozen: set[int] = set()
    led = 0
    for step in range(600):
        time.now += chance.uniform(0.05, 1.5)
        for n in range(3):
            if chance.random() < 0.02:
                sides[n] = Side(leases, f"{n}-{step}", time)
            side = sides[n]
            if chance.random() < 0.03:
                side.away = not side.away
            if chance.random() < 0.03:
                frozen ^= {n}
            if n not in frozen and chance.random() < 0.6:
                side.turn()
        acting = [side for side in sides if side.leadership.leads()]
        assert len(acting) <= 1
        led += len(acting)
    assert led > 100, "mostly somebody acts"


# --- which resources -----------------------------------------------------------------------------------------------------------------


@dataclass
class Cluster:
    """Status writes with their version, and events."""

    written: list[tuple[str, Any, str]] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)

    def patch_status(self, namespace: str, name: str, status: Any, version: str = "") -> str:
        self.written.append((name, status, version))
        return "next"

    def event(self, about: Any, kind: str, reason: str, message: str) -> None:
        self.events.append((reason, message))


def a_body(claimed: str = "", operator_class: str | None = None) -> dict[str, Any]:
    status = {"operator": claimed} if claimed else {}
    spec = {"operatorClass": operator_class} if operator_class else {}
    return {"metadata": {"namespace": "team", "name": "chat", "resourceVersion": "7"}, "spec": spec, "status": status}


def claims(leases: Leases, time: Time, mine: str = "ops/operator", operator_class: str = "default") -> tuple[Claims, Cluster]:
    cluster = Cluster()
    return Claims(mine, operator_class, cluster, leases, Watched(time)), cluster  # type: ignore[arg-type]


def test_a_free_resource_is_claimed_at_the_version_that_was_read():
    found, cluster = claims(Leases(), Time())
    assert found.serves(a_body())
    assert cluster.written == [("chat", {"operator": "ops/operator"}, "7")]
    assert found.serves(a_body("ops/operator"))
    assert len(cluster.written) == 1, "at rest nothing is written"


def test_what_another_release_serves_is_left_alone_and_said():
    time, leases = Time(), Leases()
    leases.write("old", "operator", "x", None)
    found, cluster = claims(leases, time)
    assert not found.serves(a_body("old/operator"))
    assert cluster.written == []
    ((reason, message),) = cluster.events
    assert reason == "ServedByAnother"
    assert "old/operator" in message
    assert "ops/operator" in message


def test_what_a_release_left_that_is_gone_is_taken_over():
    time, leases = Time(), Leases()
    leases.write("old", "operator", "x", None)
    found, cluster = claims(leases, time)
    assert not found.serves(a_body("old/operator"))
    time.now += DURATION
    assert found.serves(a_body("old/operator"))
    assert cluster.written == [("chat", {"operator": "ops/operator"}, "7")]
    assert found.serves(a_body("none/operator")), "nor does one whose Lease was deleted keep it"


def test_an_operator_whose_lease_may_not_be_read_is_taken_to_be_there():
    found, cluster = claims(Leases(hidden=True), Time())
    assert not found.serves(a_body("old/operator"))
    assert cluster.written == []


def test_each_class_has_its_own_operator_and_a_change_of_class_hands_over():
    found, cluster = claims(Leases(), Time(), operator_class="canary")
    assert not found.serves(a_body())
    assert cluster.written == []
    assert found.serves(a_body(operator_class="canary"))
    cluster.written.clear()
    assert not found.serves(a_body("ops/operator", "default"))
    assert cluster.written == [("chat", {"operator": None}, "7")], "so that the other need not wait"


def test_an_operator_without_a_lease_claims_nothing_and_respects_claims():
    leases = Leases()
    found, cluster = claims(leases, Time(), mine="")
    assert found.serves(a_body())
    leases.write("old", "operator", "x", None)
    assert not found.serves(a_body("old/operator"))
    assert cluster.written == []
